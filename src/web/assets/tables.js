// The tables and lists of the page: components, releases, listeners, history.
//
// Each draws what it is given and keeps the rows it has, so that an opened row, the focus and a selection outlive a
// redraw. What a button asks for becomes visible with the next status, never before.

import {
  $, Problem, age, attempt, bytes, call, clock, confirmed, h, keyed, outputBlock, plural, show, span, text,
} from "./lib.js";

const LOG_LINES = 100;

const STATE_TONE = {
  running: "good", starting: "warn", stopping: "warn", backoff: "warn", failed: "bad", stopped: "off",
  done: "good", waiting: "good",
};
const HEALTH_TONE = { healthy: "good", unhealthy: "bad", unknown: "warn", none: "none" };
const OUTCOME_TONE = { done: "good", "rolled back": "bad", failed: "bad", refused: "warn" };
const OUTCOME_WORDS = { "rolled-back": "rolled back" };

const cell = (label, name) => h("td", { role: "cell", "data-label": label, class: name });

function tone(place, value, tones, note) {
  const mark = h("span", { class: "tone", "data-tone": tones[value] ?? "warn" }, value);
  const wanted = `${value}\n${note ?? ""}`;
  if (place.dataset.shown === wanted) return;
  place.dataset.shown = wanted;
  place.replaceChildren(mark, ...(note ? [h("small", {}, note)] : []));
}

/** A row that opens: `fold` is the button, `detail` the row below that it shows. */
function folding(fold, columns, id, opened) {
  const panel = h("td", { role: "cell", colspan: columns });
  const detail = h("tr", { role: "row", class: "detail", id, hidden: true }, panel);
  fold.setAttribute("aria-expanded", "false");
  fold.setAttribute("aria-controls", id);
  fold.addEventListener("click", () => {
    const wasHidden = detail.hidden;
    show(detail, wasHidden);
    fold.setAttribute("aria-expanded", String(wasHidden));
    if (wasHidden) opened(panel);
  });
  return detail;
}

/** Draws items as pairs of rows; `fill` updates the first of each pair. */
function drawPairs(table, items, key, create, fill) {
  const rows = items.flatMap((item) => [{ item, key: `${key(item)}` }, { item, key: `${key(item)} detail` }]);
  let detail = null;
  keyed(table.tBodies[0], rows, (row) => row.key, ({ item, key: name }) => {
    if (name.endsWith(" detail")) return detail;
    const made = create(item);
    detail = made[1];
    return made[0];
  }, (row, { item }) => { if (!row.classList.contains("detail")) fill(row.cells, item); });
}

async function readLogs(panel, name) {
  const pre = panel.querySelector("pre");
  try {
    const { lines } = await call("GET", `/components/${encodeURIComponent(name)}/logs?n=${LOG_LINES}`);
    const atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 24;
    pre.replaceChildren(...lines.flatMap(({ at, stream: from, line }) => [
      h("span", { class: "at" }, `${new Date(at).toTimeString().slice(0, 8)}  `),
      h("span", { class: from }, line), "\n",
    ]));
    if (!lines.length) text(pre, "No output yet.");
    if (atEnd) pre.scrollTop = pre.scrollHeight;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    text(pre, [error.message, error.remedy].filter(Boolean).join("; "));
  }
}

function componentRow({ name }) {
  const fold = h("button", { type: "button", class: "fold" }, name);
  const act = (action, label) => {
    const note = "Its listeners stay open; connections wait until it runs again.";
    const onclick = async (event) => {
      if (action !== "start" && !await confirmed(`${label} ${name}?`, note, `${label} ${name}`)) return;
      await attempt(event.target, () => call("POST", `/components/${encodeURIComponent(name)}/${action}`));
    };
    return h("button", { type: "button", class: "small", "data-action": action, onclick }, label);
  };
  const first = h("td", { role: "cell", class: "wide" }, fold);
  const row = h("tr", { role: "row" }, first, cell("State"), cell("Health"), cell("PID", "number"),
    cell("Generation", "number"), cell("Handover"), cell("Since"));
  const detail = folding(fold, 7, `component-${name}`, (panel) => readLogs(panel, name));
  const label = `Last output of ${name}`;
  detail.cells[0].append(h("div", { class: "stack" },
    h("pre", { tabindex: "0", role: "region", "aria-label": label }),
    h("p", { class: "actions" }, act("start", "Start"), act("restart", "Restart"), act("stop", "Stop"))));
  return [row, detail];
}

function fillComponent([, state, health, pid, generation, handover, since], component) {
  const restarts = component.restarts ? plural(component.restarts, "restart") : null;
  const run = component.last_run && `ran ${clock(component.last_run.started_at)}`;
  const next = component.next_run_at && `next run ${clock(component.next_run_at)}`;
  const note = [component.reason ?? component.status, run, next, restarts].filter(Boolean).join(" · ");
  tone(state, component.state, STATE_TONE, note);
  tone(health, component.health, HEALTH_TONE);
  text(pid, component.pid ?? "–");
  text(generation, component.generation);
  text(handover, component.handover);
  text(since, component.started_at ? age(component.started_at) : "–");
  since.title = component.started_at ? clock(component.started_at) : "";
  const idle = component.state === "stopped" || component.state === "failed";
  const detail = state.parentElement.nextElementSibling;
  for (const button of detail?.querySelectorAll("[data-action]") ?? []) {
    show(button, (button.dataset.action === "start") === idle);
  }
}

export function drawReleases(releases, onTrial, busy, goBack) {
  keyed($("releases"), releases, (release) => release.version, ({ version }) => h("li", {},
    h("span", { class: "label" }, h("b", {}, version), h("span"), h("small", { class: "muted" })),
    h("button", { type: "button", class: "small", onclick: (event) => goBack(event.target, version) })),
  (item, release) => {
    const [, state, facts] = item.firstChild.children;
    const words = { current: "current", previous: "previous", kept: "kept", failed: "failed here", staged: "staged",
      damaged: "damaged" };
    const tones = { current: "good", previous: "none", kept: "none", failed: "bad", staged: "none", damaged: "bad" };
    const trial = release.version === onTrial;
    text(state, trial ? "on trial" : words[release.state] ?? release.state);
    state.className = "tone";
    state.dataset.tone = trial ? "warn" : tones[release.state] ?? "none";
    state.title = release.reason ?? "";
    const installed = release.installed_at ? ` · ${clock(release.installed_at)}` : "";
    text(facts, release.state === "damaged" ? "" : bytes(release.installed_bytes) + installed);
    const button = item.lastChild;
    text(button, release.state === "previous" ? `Go back to ${release.version}` : "Go back");
    button.setAttribute("aria-label", `Go back to ${release.version}`);
    show(button, release.state === "previous" || release.state === "kept");
    button.disabled = busy;
  });
}

function historyRow(line) {
  const fold = h("button", { type: "button", class: "fold" }, clock(line.at));
  const first = h("td", { role: "cell", class: "wide" }, fold);
  const row = h("tr", { role: "row" }, first, cell("Who", "wide"), cell(), cell(), cell(null, "wide lines"),
    cell("Duration", "number"));
  return [row, folding(fold, 6, `history-${line.id}`, (panel) => {
    const durations = Object.entries(line.durations ?? {})
      .map(([name, ms]) => h("li", {}, `${name} `, h("span", {}, span(ms))));
    const where = [line.step && `step ${line.step}`, line.component && `component ${line.component}`];
    const place = where.filter(Boolean).join(", ");
    const ended = place ? `Ended in ${place}.` : "Ended before its first step.";
    const failed = line.outcome === "done" ? null : h("p", {}, ended);
    panel.replaceChildren(h("div", { class: "stack" }, failed,
      durations.length ? h("ul", { class: "durations", "aria-label": "Duration of each step" }, ...durations) : null,
      line.output?.length ? outputBlock(line.output, line.component) : null,
      failed || durations.length ? null : h("p", { class: "muted" }, "Nothing more is known.")));
  })];
}

function fillHistory([, who, versions, outcome, reason, duration], line) {
  text(who, line.who);
  const notes = { rollback: "rollback asked for", crash: "the runtime died", reload: `reload: ${line.step}` };
  const stays = line.kind === "crash" || line.kind === "reload";
  text(versions, stays ? line.to : `${line.from ?? "–"} → ${line.to}`);
  const note = notes[line.kind] ?? null;
  tone(outcome, OUTCOME_WORDS[line.outcome] ?? line.outcome, OUTCOME_TONE, note);
  text(reason, line.reason);
  text(duration, span(line.duration_ms));
}

export function drawComponents(components, faults) {
  keyed($("faults"), faults, (fault) => `${fault.component} ${fault.phase} ${fault.at}`, (fault) =>
    h("li", {}, h("b", {}, `${fault.component}, ${fault.phase}: `), fault.cause,
      fault.priority === undefined ? null : h("span", { class: "muted" }, ` · priority ${fault.priority}`),
      h("span", { class: "muted" }, ` · ${clock(fault.at)}`)), () => {});
  drawPairs($("components"), components, (component) => component.name, componentRow, fillComponent);
}

export function drawListeners(listeners) {
  keyed($("listeners"), listeners, (listener) => listener.name, ({ name }) => h("li", {}, h("b", {}, name), h("code")),
    (item, { address, failure }) => text(item.lastChild, failure ? `${address}: ${failure}; it is tried again` : address));
}

export function drawHistory(history) {
  show($("history-empty"), history.length === 0);
  show($("history"), history.length > 0);
  drawPairs($("history"), history, (line) => line.id, historyRow, fillHistory);
}

/** Reads the output of the opened components again. */
export function followLogs() {
  for (const row of document.querySelectorAll("#components tr.detail:not([hidden])")) {
    readLogs(row.cells[0], row.dataset.key.replace(/ detail$/, ""));
  }
}
