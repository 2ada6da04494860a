/**
 * What tells somebody who looks elsewhere: the tab's title until the tab is looked at again, and, where the user allowed
 * it, a notification of the browser's. Everything that comes is text.
 *
 * @typedef {{get: (name: string) => any, on: (event: string, call: any) => void, off: (event: string, call: any) => void}} Model
 */

/** Put `text` before the title, whoever else writes it, until somebody is here. */
class Title {
  constructor() {
    this.text = "";
    this.watch = new MutationObserver(() => this.show());
    this.back = () => here() && this.clear();
  }

  /** @param {string} text */
  set(text) {
    this.clear();
    this.text = text;
    this.watch.observe(document.head, { childList: true, characterData: true, subtree: true });
    for (const event of ["focus", "visibilitychange"]) window.addEventListener(event, this.back, true);
    this.show();
  }

  show() {
    if (this.text && !document.title.startsWith(this.text)) document.title = this.text + document.title;
  }

  clear() {
    this.watch.disconnect();
    for (const event of ["focus", "visibilitychange"]) window.removeEventListener(event, this.back, true);
    if (this.text && document.title.startsWith(this.text)) document.title = document.title.slice(this.text.length);
    this.text = "";
  }
}

function here() {
  return !document.hidden && document.hasFocus();
}

/** Whether notifications are `granted`, `denied`, not asked for yet (`default`), or not to be had. */
function leave() {
  return "Notification" in window ? Notification.permission : "none";
}

/** @param {string} text @param {string} notebook */
function notify(text, notebook) {
  if (leave() !== "granted") return;
  try {
    const shown = new Notification(notebook, { body: text, tag: `gpushare ${notebook}` });
    shown.onclick = () => {
      window.focus();
      shown.close();
    };
  } catch {
    // Some browsers have notifications for service workers only: the title says it.
  }
}

const SAYS = {
  granted: "in the tab's title and by a notification of the browser.",
  denied: "in the tab's title. This browser does not allow this site notifications; its settings for the site say so.",
  default: "in the tab's title.",
  none: "in the tab's title.",
};

export default {
  /** @param {{model: Model}} given */
  initialize({ model }) {
    const title = new Title();
    const heard = (message) => {
      if (!message || message.type !== "notify" || here()) return;
      const text = String(message.text), notebook = String(message.notebook);
      title.set(`● ${text} · `);
      notify(text, notebook);
    };
    model.on("msg:custom", heard);
    return () => {
      model.off("msg:custom", heard);
      title.clear();
    };
  },

  /** @param {{model: Model, el: HTMLElement}} given */
  render({ model, el: host }) {
    host.classList.add("gs-notify");
    const text = document.createElement("span");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Allow notifications";
    const show = () => {
      const state = leave();
      const what = SAYS[state] || SAYS.default;
      text.textContent = `When a cell that waited longer than ${model.get("_after")} starts or ends, it is said ${what}`;
      button.hidden = state !== "default";
      host.dataset.leave = state;
    };
    button.addEventListener("click", async () => {
      await Notification.requestPermission();
      show();
    });
    host.append(text, button);
    show();
  },
};
