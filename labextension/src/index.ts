/** What the notebook in front holds of the device, and for what it waits: in JupyterLab's status bar, or Notebook's menu bar. */

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { IStatusBar } from '@jupyterlab/statusbar';
import { Widget } from '@lumino/widgets';

import { Feed, ISaid } from './feed';
import { Item } from './item';

const ID = 'gpushare-lab:bar';

/** As much of a session's context as tells its kernel. Notebooks and consoles have one; so does Notebook 7. */
interface ISessionContext {
  session: { kernel: { id: string } | null } | null;
  kernelChanged: {
    connect(slot: () => void): boolean;
    disconnect(slot: () => void): boolean;
  };
}

function contextOf(widget: Widget | null): ISessionContext | null {
  const found = widget as { sessionContext?: ISessionContext } | null;
  return found?.sessionContext ?? null;
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: ID,
  description: 'Shows what the notebook in front holds of the GPU, and for what it waits.',
  autoStart: true,
  optional: [IStatusBar],
  activate: (app: JupyterFrontEnd, statusBar: IStatusBar | null): void => {
    const item = new Item();
    item.id = 'gpushare-bar';
    let said: ISaid | null = null;
    let front: ISessionContext | null = null;
    const draw = (): void => {
      if (said === null) {
        return;
      }
      const kernel = front?.session?.kernel?.id ?? '';
      item.show_(said.kernels[kernel] ?? said.device, said.announcement);
    };
    const turn = (): void => {
      front?.kernelChanged.disconnect(draw);
      front = contextOf(app.shell.currentWidget);
      front?.kernelChanged.connect(draw);
      draw();
    };
    if (statusBar) {
      statusBar.registerStatusItem(ID, { item, align: 'right', rank: 150 });
    } else {
      app.shell.add(item, 'menu', { rank: 900 });
    }
    app.shell.currentChanged?.connect(turn);
    void app.restored.then(turn);
    new Feed(app.serviceManager.serverSettings, heard => {
      said = heard ?? said;
      if (heard === null) {
        item.lose();
      } else {
        draw();
      }
    });
  }
};

export default plugin;
