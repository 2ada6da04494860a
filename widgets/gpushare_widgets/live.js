/**
 * The live view in the browser. It draws scenes (gpushare_widgets/scene.py says what is in one) and says what somebody
 * clicked. Everything that comes is text: nothing is ever parsed as HTML. Entries are made once and changed in place,
 * so that what has the focus keeps it.
 *
 * @typedef {{kind: string, size: number, fill?: number|null, label: string, own: boolean, user: string|null,
 *   session: string|null, title: string}} Segment
 * @typedef {{id: string, name: string, kind: string, noun: string, policy: string, total: number, capacity: number,
 *   free: number, segments: Segment[], limits?: string, lost?: string}} Device
 * @typedef {[number|null, number|null, string]} Span  began, ended (after the device's `since`), kind; null: before the window, still going on
 * @typedef {{session: string, label: string, own: boolean, user: string|null, spans: Span[]}} Row
 * @typedef {{device: string, window: number, since: number, rows: Row[]}} Time
 * @typedef {{user: string, own: boolean, share: number, fair: number, over: number|null}} Share
 * @typedef {{job: string, label: string, own: boolean, text: string, place: number, eta: number|null,
 *   waited: number, needs: number}} Waiter
 * @typedef {{id: string, label: string, own: boolean, user: string|null, state: string, mode?: string|null,
 *   doing: string, held: number|null, actions: string[]}} Session
 * @typedef {{label: string, own: boolean, period: number, deadline: number, margin: number|null, misses: number}} Rt
 * @typedef {{name: string, own: boolean, pages: number, shared: number, size: number}} Bundle
 * @typedef {{at?: number, notice?: string, devices?: Device[], time?: Time[], shares?: Share[], queue?: Waiter[],
 *   sessions?: Session[], rt?: Rt[], bundles?: Bundle[], news?: string[], account?: string}} Scene
 * @typedef {{type: "scene", n: number, at: number, beat?: number, fresh?: boolean, whole?: Scene, gone?: string[],
 *   parts?: Object<string, {order?: string[], items: any[]}>}} Update
 * @typedef {{get: (name: string) => any, send: (message: any) => void, on: (event: string, call: any) => void,
 *   off: (event: string, call: any) => void}} Model
 */

/** What tells the entries of a section apart; as in gpushare_widgets/changes.py. */
const KEYS = { devices: "id", time: "device", shares: "user", queue: "job", sessions: "id" };
/** The controls that are known here, and what they say; others are not shown. */
const ACTIONS = {
  release: ["Release", "Give back the memory it keeps and does not use"],
  pause: ["Pause", "Let it stand still; its memory stays"],
  resume: ["Resume", "Let it go on"],
  park: ["Park", "Give its memory back and keep its state"],
  restore: ["Restore", "Put its memory back"],
  ask: ["Ask", "Ask its owner to give memory back"],
};
const STATES = { busy: "▶", waiting: "⋯", idle: "○", paused: "‖", parked: "⇩", restoring: "↻", opened: "…", orphaned: "?", bare: "○" };
const KINDS = {
  context: "contexts", persistent: "kept by a notebook", lane: "for what runs", free: "free",
  parked: "parked, beside the device", desktop: "desktop", foreign: "not shared",
};
const SPANS = { turn: "has the device", drain: "finishes its work", pause: "paused", park: "parked" };
/** Okabe and Ito's colours, told apart by whoever sees them; the first, blue, is one's own. */
const OTHERS = 6;
const QUIET = 5000;
/** Milliseconds for which the answer to a click stays. */
const ANSWER = 20000;
/** Seconds without a word after which a kernel whose cell runs is silent: it says something twice in that time. */
const SILENT = 3;
/** Seconds after which an update is late, and time moves on without one. */
const LATE = 0.35;
/** Windows after which spans are laid out anew: a browser's lengths have an end. */
const LONG = 100;

let instances = 0;

/** @param {string} tag @param {string} [name] @param {string} [text] */
function el(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = `gs-${name}`;
  if (text !== undefined) node.textContent = text;
  return node;
}

/**
 * Jupyter's shortcuts would take arrows and Enter; on what has the focus they are ours. They are looked for on what is
 * focused first, and then on what is around it, and Notebook 7 looks before the keys come here.
 */
function ours(node) {
  node.setAttribute("data-lm-suppress-shortcuts", "true");
  return node;
}

/** Set a text only where it is another: what is as it was is not read out again. */
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function attr(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

/** Hide, or not, only where that is new: a browser lays out and paints for an attribute that is set again. */
function hide(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

/**
 * Keep the children of `parent` in step with `items`.
 * @template T
 * @param {any} parent @param {T[]} items @param {(item: T) => string} key
 * @param {(item: T) => HTMLElement} make @param {(node: any, item: T) => void} change
 */
function keep(parent, items, key, make, change) {
  const before = parent.gsKept || new Map();
  const kept = (parent.gsKept = new Map());
  const keys = [];
  for (const item of items) {
    let name = key(item);
    while (kept.has(name)) name += "+";
    keys.push(name);
    kept.set(name, before.get(name) || make(item));
  }
  const focused = parent.getRootNode().activeElement;
  for (const [name, node] of before) if (!kept.has(name)) node.remove();
  let cursor = parent.firstElementChild;
  keys.forEach((name, index) => {
    const node = kept.get(name);
    if (node === cursor) cursor = cursor.nextElementSibling;
    else parent.insertBefore(node, cursor);
    // What did not change is the very object it was.
    if (node.gsItem !== items[index]) change(node, items[index]);
    node.gsItem = items[index];
  });
  // A node that is moved loses the focus.
  if (focused && parent.contains(focused) && parent.getRootNode().activeElement !== focused)
    focused.focus({ preventScroll: true });
}

/** A size as the rest of gpushare writes it. @param {number} bytes */
function size(bytes) {
  for (const [unit, factor] of [["TiB", 2 ** 40], ["GiB", 2 ** 30]])
    if (bytes >= factor) return `${(bytes / factor).toFixed(1)} ${unit}`;
  for (const [unit, factor] of [["MiB", 2 ** 20], ["KiB", 2 ** 10]])
    if (bytes >= factor) return `${(bytes / factor).toFixed(0)} ${unit}`;
  return `${bytes} B`;
}

/** @param {number} seconds */
function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function millis(seconds) {
  return `${+(seconds * 1000).toFixed(1)} ms`;
}

function percent(fraction) {
  return `${Math.round(fraction * 100)} %`;
}

/**
 * What a message makes of a scene; null where one before it was lost.
 * @param {Scene|null} scene @param {Update} update @returns {Scene|null}
 */
export function applied(scene, update) {
  if (!scene && !update.fresh) return null;
  const next = update.fresh ? {} : { ...scene };
  next.at = update.at;
  for (const name of update.gone || []) delete next[name];
  Object.assign(next, update.whole);
  for (const [name, part] of Object.entries(update.parts || {})) {
    const key = KEYS[name];
    const known = new Map((next[name] || []).map((entry) => [entry[key], entry]));
    for (const entry of part.items) known.set(entry[key], entry);
    const order = part.order || (next[name] || []).map((entry) => entry[key]);
    if (order.some((one) => !known.has(one))) return null;
    next[name] = order.map((one) => known.get(one));
  }
  return next;
}

class LiveView {
  /** @param {Model} model @param {HTMLElement} host */
  constructor(model, host) {
    this.model = model;
    this.id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;
    this.number = null;
    this.scene = null;
    this.beat = 10;
    this.received = 0;
    this.saidAt = -Infinity;
    this.calls = new Map();
    this.users = new Map();
    this.visible = false;
    this.slow = matchMedia("(prefers-reduced-motion: reduce)");
    this.build(host);
    this.hear = (message, buffers) => {
      // What the kernel has to say comes as bytes of JSON: making them costs it least.
      if (message.type === "json" && buffers?.length) this.heard(JSON.parse(new TextDecoder().decode(buffers[0])));
    };
    model.on("msg:custom", this.hear);
    // Told when the kernel is restarted; a comm that was given up does not come back.
    this.onComm = () => this.lose("The kernel was restarted: run %gpushare live again.");
    model.on("comm_live_update", this.onComm);
    const first = model.get("_first");
    if (first && first.at) this.show(first);
    this.observer = new IntersectionObserver((entries) => {
      this.onScreen = entries[entries.length - 1].isIntersecting;
      this.look();
    });
    this.observer.observe(this.root);
    this.onVisibility = () => this.look();
    document.addEventListener("visibilitychange", this.onVisibility);
    this.clock = setInterval(() => this.tick(), 250);
    this.say("hello");
  }

  destroy() {
    this.say("bye");
    clearInterval(this.clock);
    for (const timer of [this.heart, this.speech, this.forget]) clearTimeout(timer);
    this.observer.disconnect();
    document.removeEventListener("visibilitychange", this.onVisibility);
    this.model.off("msg:custom", this.hear);
    this.model.off("comm_live_update", this.onComm);
    this.root.remove();
  }

  // --- what is said, and heard --------------------------------------------------------------------------

  /** A view copied into another page has no kernel behind it: then it stays as it is, without controls. */
  say(type, more) {
    if (this.lost !== undefined) return;
    try {
      this.model.send({ type, view: this.id, ...more });
    } catch {
      this.lose("");
    }
  }

  /** Nobody is there to hear a click any more. */
  lose(why) {
    this.lost = why;
    clearTimeout(this.heart);
    this.root.dataset.dead = "true";
    this.tick();
  }

  /** Ask when somebody begins to look, and say when nobody does any more; while a cell runs, say now and then that one does. */
  look() {
    const visible = Boolean(this.onScreen) && document.visibilityState === "visible";
    if (visible !== this.visible) this.say(!visible ? "bye" : this.number === null ? "alive" : "look");
    this.visible = visible;
    clearTimeout(this.heart);
    if (!visible || !this.beat) return;
    const beat = () => {
      if (!this.root.isConnected) return;
      this.heart = setTimeout(beat, this.beat * 1000);
      this.say("alive");
    };
    this.heart = setTimeout(beat, this.beat * 1000);
  }

  /** @param {any} message */
  heard(message) {
    if (message.type === "done") return this.done(message);
    if (message.type !== "scene") return;
    const next = message.fresh || message.n === this.number + 1 ? applied(this.scene, message) : null;
    if (!next) {
      this.number = null;
      return this.say("hello");
    }
    this.number = message.n;
    if (message.beat !== undefined && message.beat !== this.beat) {
      this.beat = message.beat;
      this.look();
    }
    this.show(next);
    this.root.dataset.updates = String(Number(this.root.dataset.updates || 0) + 1);
  }

  act(session, action, button) {
    const call = `${this.id}-${(this.asked = (this.asked || 0) + 1)}`;
    this.calls.set(call, button);
    button.setAttribute("aria-disabled", "true");
    this.say("do", { action, session, call });
  }

  done(message) {
    const button = this.calls.get(message.call);
    if (!button) return;
    this.calls.delete(message.call);
    button.removeAttribute("aria-disabled");
    put(this.answer, message.text);
    this.answer.hidden = false;
    clearTimeout(this.forget);
    this.forget = setTimeout(() => hide(this.answer, true), ANSWER);
  }

  // --- what is drawn ------------------------------------------------------------------------------------

  build(host) {
    const name = `gs-${(instances += 1)}`;
    this.root = el("section", "live");
    this.root.setAttribute("aria-label", "What is shared here, by gpushare");
    ours(this.root);
    const head = el("header", "head");
    head.append(el("strong", "", "gpushare"));
    this.fresh = el("span", "fresh");
    this.refresh = ours(el("button", "button", "Refresh"));
    this.refresh.addEventListener("click", () => this.say("look"));
    this.refresh.hidden = true;
    head.append(this.fresh, this.refresh);
    this.notice = el("p", "notice");
    this.notice.setAttribute("role", "status");
    this.notice.hidden = true;
    this.answer = el("p", "answer");
    this.answer.setAttribute("role", "status");
    this.answer.hidden = true;
    this.spoken = el("div", "spoken");
    this.spoken.setAttribute("aria-live", "polite");
    this.news = el("div", "news");
    this.news.setAttribute("role", "status");
    this.news.hidden = true;
    this.account = el("p", "account");
    this.account.hidden = true;
    this.root.append(head, this.notice, this.news, this.answer, this.spoken);
    this.parts = {};
    for (const [part, title, tag] of [
      ["devices", "Memory", "div"], ["time", "Last 30 seconds", "div"], ["shares", "Shares", "ul"],
      ["queue", "Waiting", "ol"], ["sessions", "Notebooks", "ul"], ["rt", "Deadlines", "ul"],
      ["bundles", "Models that share pages", "ul"],
    ]) {
      const box = el("section", `part gs-part-${part}`);
      const heading = el("h4", "title", title);
      heading.id = `${name}-${part}`;
      box.setAttribute("aria-labelledby", heading.id);
      const list = el(tag, `list gs-${part}`);
      box.append(heading, list);
      box.hidden = true;
      this.root.append(box);
      this.parts[part] = { box, list };
    }
    this.spanKinds = el("p", "legend");
    this.parts.time.box.append(this.spanKinds);
    this.root.append(this.account);
    host.append(this.root);
  }

  /** @param {Scene} scene */
  show(scene) {
    this.announce(scene);
    const before = this.scene || {};
    this.scene = scene;
    this.received = performance.now();
    const draw = {
      devices: (list, all) => keep(list, all, (d) => d.id, () => this.makeDevice(), (n, d) => this.device(n, d)),
      time: (list, all) => keep(list, all, (t) => t.device, () => this.makeTime(), (n, t) => this.time(n, t)),
      shares: (list, all) => keep(list, all, (s) => s.user, makeShare, (n, s) => this.share(n, s)),
      queue: (list, all) => keep(list, all, (q) => q.job, makeLine, waiter),
      sessions: (list, all) => keep(list, all, (s) => s.id, makeSession, (n, s) => this.session(n, s)),
      rt: (list, all) => keep(list, all, (r) => r.label, makeLine, deadline),
      bundles: (list, all) => keep(list, all, (b) => b.name, makeLine, bundle),
    };
    const news = Array.isArray(scene.news) ? scene.news : [];
    keep(this.news, news, (said) => said, () => el("p", "word"), put);
    hide(this.news, !news.length);
    put(this.account, scene.account || "");
    hide(this.account, !scene.account);
    for (const [name, { box, list }] of Object.entries(this.parts)) {
      if (scene[name] === before[name]) continue;
      const entries = Array.isArray(scene[name]) ? scene[name] : [];
      hide(box, !entries.length);
      draw[name](list, entries);
    }
    if (scene.time) {
      this.legend(scene.time);
      this.moveSpans(0);
    }
    this.root.dataset.at = String(scene.at);
    this.tick();
  }

  /** Say how fresh it is, and let time move on where a cell runs. */
  tick() {
    if (!this.scene) return;
    const age = (performance.now() - this.received) / 1000;
    const notice = this.lost || this.scene.notice || "";
    const kernel = this.number !== null && this.lost === undefined;
    const live = kernel && !notice;
    const idle = !this.beat;
    const silent = live && !idle && age >= SILENT;
    const ago = age < 5 ? "now" : `${duration(age)} ago; live while a cell runs`;
    put(this.fresh, !live ? "" : idle ? ago : silent ? `no news for ${duration(age)}` : "live");
    hide(this.refresh, !kernel || !idle || (!notice && age < 5));
    put(this.notice, notice);
    hide(this.notice, !notice);
    this.root.classList.toggle("gs-away", Boolean(notice) || silent);
    if (!this.slow.matches && live && !idle && age > LATE && this.scene.time) this.moveSpans(Math.min(age, 2));
  }

  /** Own jobs only, and not more often than every few seconds: whoever listens has other things to hear. */
  announce(scene) {
    if (!this.scene) return;
    const before = new Map((this.scene.queue || []).filter((q) => q.own).map((q) => [q.job, q]));
    const now = new Map((scene.queue || []).filter((q) => q.own).map((q) => [q.job, q]));
    const said = [];
    for (const [job, q] of now)
      if (!before.has(job) || before.get(job).place !== q.place) said.push(`${q.label} waits, ${ahead(q.place)}.`);
    for (const [job, q] of before) if (!now.has(job)) said.push(`${q.label} waits no more.`);
    if (said.length) this.unsaid = said.join(" ");
    const due = this.saidAt + QUIET - performance.now();
    clearTimeout(this.speech);
    if (!this.unsaid) return;
    this.speech = setTimeout(() => {
      put(this.spoken, this.unsaid);
      this.unsaid = "";
      this.saidAt = performance.now();
    }, Math.max(0, due));
  }

  /** Colour whoever owns something: one's own is the first colour, every other user keeps the one given first. */
  paint(node, entry) {
    let tone = "none";
    if (entry.own) tone = "own";
    else if (entry.user) {
      if (!this.users.has(entry.user)) this.users.set(entry.user, this.users.size % OTHERS);
      tone = String(this.users.get(entry.user));
    }
    attr(node, "data-tone", tone);
  }

  makeDevice() {
    const node = el("div", "device");
    const head = el("div", "device-head");
    head.append(el("span", "device-name"), el("span", "device-sum"));
    const map = el("div", "map");
    map.setAttribute("role", "list");
    map.addEventListener("keydown", roving);
    const beside = el("div", "map gs-beside");
    beside.setAttribute("role", "list");
    beside.addEventListener("keydown", roving);
    const detail = el("p", "detail");
    const said = el("p", "said");
    const show = (event) => {
      const piece = event.target.closest?.(".gs-segment");
      node.gsAt = piece || null;
      put(detail, piece ? piece.gsTitle : node.gsRest || "");
    };
    for (const event of ["pointerover", "focusin"]) node.addEventListener(event, show);
    for (const event of ["pointerleave", "focusout"]) node.addEventListener(event, () => {
      const focused = node.contains(document.activeElement) ? document.activeElement.closest(".gs-segment") : null;
      node.gsAt = focused;
      put(detail, focused ? focused.gsTitle : node.gsRest || "");
    });
    node.append(head, map, beside, detail, el("ul", "legend"), said);
    return node;
  }

  /** @param {any} node @param {Device} device */
  device(node, device) {
    const [head, map, beside, detail, legend, said] = node.children;
    attr(node, "data-device", device.id);
    put(head.children[0], device.name);
    const whole = device.total || device.capacity;
    const part = device.capacity ? ` (${Math.floor((100 * device.free) / device.capacity)} %)` : "";
    put(head.children[1], `${size(device.free)} of ${size(device.capacity)} free${part}`);
    const segments = device.segments || [];
    const on = segments.filter((s) => s.kind !== "parked");
    const off = segments.filter((s) => s.kind === "parked");
    attr(map, "aria-label", `${device.noun} of ${device.name}, ${size(whole)}`);
    attr(beside, "aria-label", "Parked, beside the device");
    hide(beside, !off.length);
    const sum = on.reduce((all, s) => all + s.size, 0) || 1;
    const parked = off.reduce((all, s) => all + s.size, 0);
    beside.style.width = `${Math.min(100, (100 * parked) / sum)}%`;
    for (const [list, pieces] of [[map, on], [beside, off]]) {
      keep(list, pieces, (s) => `${s.kind}:${s.session}`, makeSegment, (n, s) => this.segment(n, s));
      const at = [...list.children].findIndex((piece) => piece.tabIndex === 0);
      [...list.children].forEach((piece, index) => { piece.tabIndex = index === Math.max(0, at) ? 0 : -1; });
    }
    node.gsRest = "";
    put(detail, node.gsAt && node.gsAt.isConnected ? node.gsAt.gsTitle : "");
    keep(legend, segments.filter((s) => s.kind !== "free").slice(0, 12), (s) => `${s.kind}:${s.session}`, () => {
      const item = el("li", "key");
      item.append(el("span", "swatch"), el("span", "key-text"));
      return item;
    }, (item, s) => {
      attr(item.children[0], "data-kind", s.kind);
      this.paint(item.children[0], s);
      item.classList.toggle("gs-own", s.own);
      const kind = ["persistent", "context", "desktop", "foreign"].includes(s.kind) ? "" : `, ${KINDS[s.kind] || s.kind}`;
      put(item.children[1], `${s.label} ${size(s.size)}${kind}`);
    });
    put(said, device.lost || device.limits || "");
    hide(said, !said.textContent);
  }

  segment(node, segment) {
    attr(node, "data-kind", segment.kind);
    attr(node, "data-session", segment.session);
    this.paint(node, segment);
    node.classList.toggle("gs-own", segment.own);
    node.style.flexGrow = String(segment.size);
    const [fill, label] = node.children;
    const known = segment.fill !== null && segment.fill !== undefined;
    hide(fill, segment.kind !== "lane" || !known);
    fill.style.width = `${known ? Math.min(100, (100 * segment.fill) / (segment.size || 1)) : 0}%`;
    put(label, segment.label);
    node.gsTitle = segment.title;
    attr(node, "aria-label", segment.title);
  }

  makeTime() {
    const node = el("div", "timeline");
    const axis = el("div", "axis");
    axis.setAttribute("aria-hidden", "true");
    axis.append(el("span", "", "30 s ago"), el("span", "", "15 s ago"), el("span", "", "now"));
    node.append(el("div", "device-name"), el("ul", "rows"), axis);
    return node;
  }

  time(node, time) {
    const [name, rows] = node.children;
    const device = (this.scene.devices || []).find((d) => d.id === time.device);
    put(name, device ? device.name : time.device);
    hide(name, (this.scene.time || []).length < 2);
    keep(rows, time.rows, (r) => r.session, () => {
      const row = el("li", "row");
      const track = el("span", "track");
      track.setAttribute("role", "img");
      track.append(el("span", "strip"));
      row.append(el("span", "row-name"), track);
      return row;
    }, (row, entry) => {
      const [label, track] = row.children;
      put(label, entry.label);
      attr(label, "title", entry.label);
      row.classList.toggle("gs-own", entry.own);
      attr(row, "data-session", entry.session);
      track.gsTime = time;
      const { base, end } = along(time, this.scene.at);
      keep(track.firstChild, entry.spans, (s) => `${s[2]}:${s[0]}`, (s) => {
        const span = el("span", "span");
        attr(span, "data-kind", s[2]);
        this.paint(span, entry);
        return span;
      }, (span, s) => {
        const left = (s[0] ?? base - time.window) - base;
        const width = (s[1] ?? end) - base - left;
        if (span.gsLeft === left && span.gsWidth === width) return;
        span.style.left = `${((100 * left) / time.window).toFixed(2)}%`;
        span.style.width = `${((100 * width) / time.window).toFixed(2)}%`;
        [span.gsLeft, span.gsWidth] = [left, width];
      });
      attr(track, "aria-label", spoken(entry, time.window, this.scene.at - time.since));
    });
  }

  /** Spans lie still on a strip; `age` seconds after the scene it is so far along. */
  moveSpans(age) {
    for (const track of this.parts.time.list.querySelectorAll(".gs-track")) {
      const { window, since } = track.gsTime;
      const { base } = along(track.gsTime, this.scene.at);
      const now = this.scene.at + age - since;
      track.firstChild.style.transform = `translateX(${(-100 * ((now - base) / window - 1)).toFixed(2)}%)`;
    }
  }

  legend(times) {
    const kinds = [...new Set(times.flatMap((t) => t.rows.flatMap((r) => r.spans.map((s) => s[2]))))];
    keep(this.spanKinds, kinds, (k) => k, () => {
      const item = el("span", "key");
      item.append(el("span", "swatch gs-span"), el("span"));
      return item;
    }, (item, kind) => {
      attr(item.children[0], "data-kind", kind);
      attr(item.children[0], "data-tone", "none");
      put(item.children[1], SPANS[kind] || kind);
    });
  }

  /** @param {any} node @param {Share} share */
  share(node, share) {
    const [name, bar, text] = node.children;
    put(name, share.own ? `${share.user} (you)` : share.user);
    node.classList.toggle("gs-own", share.own);
    this.paint(bar, share);
    const most = Math.max(share.share, share.fair, 0);
    bar.children[0].style.width = `${Math.min(100, 100 * share.share)}%`;
    bar.children[1].style.left = `${Math.min(100, 100 * share.fair)}%`;
    attr(node, "data-user", share.user);
    put(text, most ? `${percent(share.share)}, fair is ${percent(share.fair)}` : "nothing yet");
  }

  /** @param {any} node @param {Session} session */
  session(node, session) {
    const [name, state, doing, held, actions] = node.children;
    attr(node, "data-session", session.id);
    attr(node, "data-state", session.state);
    attr(node, "data-own", session.own);
    node.classList.toggle("gs-own", session.own);
    this.paint(name.children[0], session);
    put(name.children[1], session.label);
    put(state, `${STATES[session.state] || "•"} ${session.state}${session.mode ? `, ${session.mode}` : ""}`);
    put(doing, session.doing && session.doing !== session.label ? session.doing : "");
    put(held, session.held ? size(session.held) : "");
    const known = (session.actions || []).filter((action) => action in ACTIONS);
    const focused = actions.contains(node.getRootNode().activeElement);
    keep(actions, known, (a) => a, (action) => {
      const button = ours(el("button", "button", ACTIONS[action][0]));
      button.type = "button";
      button.title = ACTIONS[action][1];
      button.dataset.action = action;
      button.addEventListener("click", () => {
        if (button.getAttribute("aria-disabled") !== "true") this.act(node.dataset.session, action, button);
      });
      return button;
    }, (button, action) => attr(button, "aria-label", `${ACTIONS[action][0]} ${session.label}`));
    // A control that is gone leaves the keyboard where it was.
    if (focused && !actions.contains(node.getRootNode().activeElement)) node.focus({ preventScroll: true });
  }
}

function makeSegment() {
  const node = ours(el("div", "segment"));
  node.setAttribute("role", "listitem");
  node.tabIndex = -1;
  node.append(el("span", "fill"), el("span", "label"));
  node.addEventListener("focus", () => {
    for (const other of node.parentElement.children) other.tabIndex = other === node ? 0 : -1;
  });
  return node;
}

function makeShare() {
  const node = el("li", "share");
  const bar = el("span", "bar");
  bar.setAttribute("aria-hidden", "true");
  bar.append(el("span", "bar-fill"), el("span", "bar-fair"));
  node.append(el("span", "row-name"), bar, el("span", "number"));
  return node;
}

function makeSession() {
  const node = ours(el("li", "session"));
  node.tabIndex = -1;
  const name = el("span", "session-name");
  name.append(el("span", "swatch"), el("span", "session-label"));
  name.children[0].dataset.kind = "persistent";
  node.append(name, el("span", "state"), el("span", "doing"), el("span", "held"), el("span", "actions"));
  return node;
}

function makeLine() {
  const node = el("li", "line");
  node.append(el("span", "line-name"), el("span", "line-text"));
  return node;
}

function ahead(place) {
  return place ? `${place} ahead` : "next";
}

function waiter(node, q) {
  attr(node, "data-job", q.job);
  node.classList.toggle("gs-own", q.own);
  put(node.children[0], q.label);
  const told = [`waits ${duration(q.waited)}`];
  if (!q.own) told.unshift(ahead(q.place)); // one's own text has place and time to go
  if (!q.own && q.eta !== null && q.eta !== undefined) told.push(`about ${duration(q.eta)} to go`);
  put(node.children[1], `${told.join(" · ")}. ${q.text}`);
}

function deadline(node, rt) {
  node.classList.toggle("gs-own", rt.own);
  node.classList.toggle("gs-missed", rt.misses > 0);
  put(node.children[0], rt.label);
  const margin = rt.margin === null ? "" : ` · at least ${millis(rt.margin)} to spare`;
  put(node.children[1], `every ${millis(rt.period)}, due within ${millis(rt.deadline)}${margin} · ${rt.misses} missed`);
}

function bundle(node, one) {
  node.classList.toggle("gs-own", one.own);
  put(node.children[0], one.name);
  put(node.children[1], `${size(one.size)} · ${one.pages} pages, ${one.shared} of them shared`);
}

/** Where a strip begins, and what lies beyond its window for a while: the end of what still goes on. @param {Time} time */
function along(time, at) {
  const now = at - time.since;
  const base = now - (now % (LONG * time.window));
  return { base, end: now - (now % time.window) + 2 * time.window };
}

/** A row of time in words. */
function spoken(row, window, at) {
  const sums = new Map();
  for (const [began, ended, kind] of row.spans) {
    const length = Math.min(window, at - (began ?? at - window)) - (ended === null ? 0 : at - ended);
    sums.set(kind, (sums.get(kind) || 0) + length);
  }
  const said = [...sums].map(([kind, s]) => `${SPANS[kind] || kind} ${Math.round(s)} s`);
  return `${row.label}: ${said.join(", ") || "nothing"}`;
}

/** Arrow keys, Home and End move between the pieces of a map; Tab leaves it. */
function roving(event) {
  const pieces = [...event.currentTarget.children];
  const at = pieces.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: pieces.length - 1 };
  if (at < 0 || !(event.key in to)) return;
  event.preventDefault();
  event.stopPropagation();
  pieces[Math.min(pieces.length - 1, Math.max(0, to[event.key]))].focus();
}

export default {
  /** @param {{model: Model, el: HTMLElement}} given */
  render({ model, el: host }) {
    const view = new LiveView(model, host);
    return () => view.destroy();
  },
};
