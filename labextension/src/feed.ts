/** What the server says of notebooks: a WebSocket that is open while somebody looks at the page. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** One line, what it stands for in full, and what it is about: waiting, busy, paused, idle, parked or away. */
export interface IBar {
  text: string;
  title: string;
  state: string;
}

/** Bars by kernel, and one for where no notebook that shares is in front. */
export interface ISaid {
  kernels: Record<string, IBar>;
  device: IBar;
  announcement: string | null;
}

const FIRST = 1000;
const LONGEST = 60_000;

/** Hears the server. A page in the background is not fed; a server without our extension is asked less and less often. */
export class Feed {
  constructor(
    private readonly settings: ServerConnection.ISettings,
    private readonly hear: (said: ISaid | null) => void
  ) {
    document.addEventListener('visibilitychange', () => this.look());
    this.look();
  }

  private look(): void {
    if (document.hidden) {
      this.hangUp();
    } else if (this.socket === null) {
      this.pause = FIRST;
      this.connect();
    }
  }

  private connect(): void {
    const { wsUrl, token, appendToken, WebSocket } = this.settings;
    let url = URLExt.join(wsUrl, 'gpushare', 'bar');
    if (appendToken && token !== '') {
      url += `?token=${encodeURIComponent(token)}`;
    }
    const socket = new WebSocket(url);
    this.socket = socket;
    socket.onmessage = message => {
      this.pause = FIRST;
      this.hear(JSON.parse(message.data) as ISaid);
    };
    socket.onclose = () => {
      if (this.socket !== socket) {
        return; // hung up on purpose
      }
      this.hear(null);
      this.timer = window.setTimeout(() => this.connect(), this.pause);
      this.pause = Math.min(2 * this.pause, LONGEST);
    };
  }

  private hangUp(): void {
    window.clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  private socket: WebSocket | null = null;
  private timer = 0;
  private pause = FIRST;
}
