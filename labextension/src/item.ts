/** The item: a line, and what it stands for in full where one opens it. */

import { Widget } from '@lumino/widgets';

import { IBar } from './feed';

const HELP = 'gpushare-bar-help';
const GAP = 4;

/** Shows what it is given; out of sight until there is something. */
export class Item extends Widget {
  constructor() {
    super();
    this.addClass('gpushare-bar');
    this.button.type = 'button';
    this.button.className = 'gpushare-bar-button';
    this.button.setAttribute('popovertarget', HELP);
    this.help.id = HELP;
    this.help.className = 'gpushare-bar-help';
    this.help.setAttribute('popover', '');
    this.help.addEventListener('beforetoggle', () => this.place());
    this.text.className = 'gpushare-bar-text';
    this.said.className = 'gpushare-bar-said';
    this.button.append(this.said, this.text);
    this.node.append(this.button, this.help);
    this.hide();
  }

  /** Show `bar`, and what the administrator says. */
  show_(bar: IBar, announcement: string | null): void {
    this.node.dataset.state = bar.state;
    set(this.text, bar.text);
    set(this.said, announcement ?? '');
    this.said.hidden = !announcement;
    const whole = [announcement, bar.title].filter(Boolean).join('\n\n');
    set(this.help, whole);
    this.button.title = whole;
    this.show();
  }

  /** The server says nothing any more: what is there may not be so now. */
  lose(): void {
    this.node.dataset.state = 'lost';
  }

  /** The whole goes above the line where that is at the bottom (JupyterLab), else below it (Notebook). */
  private place(): void {
    const { top, bottom } = this.button.getBoundingClientRect();
    const below = top < window.innerHeight / 2;
    this.help.style.top = below ? `${bottom + GAP}px` : 'auto';
    this.help.style.bottom = below ? 'auto' : `${window.innerHeight - top + GAP}px`;
  }

  private readonly button = document.createElement('button');
  private readonly text = document.createElement('span');
  private readonly said = document.createElement('span');
  private readonly help = document.createElement('div');
}

function set(node: HTMLElement, text: string): void {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}
