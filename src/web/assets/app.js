// The admin page: one view of `/api/v1`, kept current by its event stream.
//
// `status` says what is, `events` say what happens. Events may be missed while the runtime replaces itself, so the
// status is read again whenever the stream opens, and an update whose last event was missed ends by its line in the
// history. The page decides nothing.

import {
  $, API, Problem, age, announce, attempt, call, confirmed, h, keepSecret, keyed, now, outputBlock, prose,
  sessionSecret, show, showProblem, span, text, voyage,
} from "./lib.js";
import { drawPackage, drawRepository, forget, lend, progressed, standing, stopTransfer } from "./package.js";
import { STEPS } from "./steps.js";
import { drawComponents, drawHistory, drawListeners, drawReleases, followLogs } from "./tables.js";

const RECONNECT_SHOWN_MS = 2_000; // a handover is shorter than this and is no news
const RECONNECT_MS = 1_000;
const GATHER_MS = 120;            // events come in bursts; one read of the status answers all of them
const TICKET_MS = 1_000;
const UNEXPLAINED_MS = 10_000;    // an update that is neither running nor in the history is given up after this
const RECHECK_MS = 15_000;        // a stream that broke without a word is noticed by this
const LOGS_MS = 3_000;

const STEP = Object.fromEntries(STEPS.map(({ name }, index) => [name, index]));
// What the status calls a step while it is under way.
const PHASE_STEP = Object.fromEntries(STEPS.filter(({ name, phase, instant }) => !instant || phase !== name)
  .map(({ name, phase }) => [phase, name]));
const REACHED_IS_DONE = new Set(STEPS.filter(({ instant }) => instant).map(({ name }) => name));
const FINAL = new Set(["committed", "rolled-back", "failed"]);

// ---- session ------------------------------------------------------------------------------------------------------

function signedOut() {
  stopStream();
  status = null;
  live = null;
  forget();
  stopTransfer();
  $("confirm").close();
  show($("page"), false);
  show($("connection"), false);
  text($("login-host"), location.host);
  document.title = "Sign in · Refit";
  if ($("login").hidden) {
    show($("login"), true);
    $("password").focus();
  }
}

addEventListener("signed-out", signedOut);

$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  show($("login-problem"), false);
  try {
    const session = await call("POST", "/session", { user: "admin", password: $("password").value });
    keepSecret(session.secret);
    $("password").value = "";
    await open();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(error, $("login-problem"));
    $("password").select();
  } finally {
    button.disabled = false;
  }
});

$("logout").addEventListener("click", (event) => attempt(event.target, async () => {
  await call("DELETE", "/session");
  keepSecret(null);
  signedOut();
}));

// ---- state and its stream -----------------------------------------------------------------------------------------

let status = null;
let releases = [];
let history = [];
let earlier = null;     // ids that were in the history when the page opened: their events are old news
let pageRuntime = null; // the runtime version that served this page
let stream = null;
let lostTimer = 0;
let gatherTimer = 0;
let gatherAll = false;
let reading = null;

async function read(all) {
  const next = await call("GET", "/status");
  const [kept, attempts] = all ? await Promise.all([call("GET", "/releases"), call("GET", "/history")]) : [null, null];
  status = next;
  if (kept) releases = kept.releases;
  if (attempts) history = attempts.history;
  earlier ??= new Set(history.map((attempt) => String(attempt.id)));
  pageRuntime ??= next.runtime.version;
  followStatus();
  draw();
}

/** Reads the state soon; calls that come together are one read, and a call during a read leads to another. */
function refresh(all = false) {
  gatherAll ||= all;
  clearTimeout(gatherTimer);
  gatherTimer = setTimeout(async () => {
    if (reading) { await reading; return refresh(); }
    const whole = gatherAll;
    gatherAll = false;
    reading = read(whole).catch((error) => {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 401 || !stream) return;
      gatherAll ||= whole;
      if (stream.readyState === EventSource.OPEN) restartStream(); // it only seems open: nobody answers
      setTimeout(refresh, RECONNECT_MS);
    }).finally(() => { reading = null; });
    return reading;
  }, GATHER_MS);
}

async function open() {
  if (!sessionSecret()) return signedOut(); // a session without it only looks
  await read(true);
  show($("login"), false);
  show($("page"), true);
  startStream();
}

function startStream() {
  stopStream();
  stream = new EventSource(`${API}/events`);
  const on = (type, handle) => stream.addEventListener(type, (event) => handle(JSON.parse(event.data)));
  stream.addEventListener("open", () => {
    clearTimeout(lostTimer);
    lostTimer = 0;
    show($("connection"), false);
    refresh(true);
  });
  stream.addEventListener("error", () => {
    if (!lostTimer) lostTimer = setTimeout(() => show($("connection"), true), RECONNECT_SHOWN_MS);
    // It ends with the process image that serves it.
    if (live && !live.outcome && !live.backing) reachExec();
    draw();
    // A network error is retried by the browser itself, from the last event on; a refused request is left to us.
    if (stream?.readyState === EventSource.CLOSED) setTimeout(reviveStream, RECONNECT_MS);
    refresh();
  });
  on("bus.state", () => refresh());
  on("component", () => refresh());
  on("fault", () => refresh());
  on("release", () => refresh(true));
  on("package.progress", progressed);
  on("update.step", onStep);
  on("update.progress", onProgress);
}

function reviveStream() {
  if (stream?.readyState === EventSource.CLOSED) restartStream();
}

/** Opens the stream anew; how long it has been lost goes on counting. */
function restartStream() {
  const timer = lostTimer;
  lostTimer = 0; // or opening would end it
  startStream();
  lostTimer = timer;
}

function stopStream() {
  clearTimeout(lostTimer);
  lostTimer = 0;
  stream?.close();
  stream = null;
}

// ---- the update in progress, whoever asked for it -----------------------------------------------------------------

let live = null;

function follow(id, kind, from, to) {
  return {
    id, kind, from: from ?? status.release.version, to, startedAt: now(), endedAt: 0,
    reached: -1, active: false, at: {}, notes: {}, // the step it is in; when each came, what it says
    progress: null, progressNote: null,            // of the step it is in
    backing: false, outcome: null, reason: null, component: null, output: [],
    missingSince: 0,
  };
}

/**
 * Shows an update that was just asked for; its id is known with its first event. `shown` is what was shown when it was
 * asked for: anything else by now is this update, whose events were faster than the answer.
 */
function begin(kind, from, to, ticket, shown) {
  if (ticket.state === "refused" || ticket.state === "failed") {
    throw new Problem(0, { detail: ticket.reason ?? `the ${kind} was ${ticket.state}` });
  }
  forget();
  if (live !== shown) return;
  live = follow(null, kind, from, to);
  announce(`${kind === "update" ? "Update" : "Rollback"} to ${to} begins`);
  draw();
  refresh();
  watchTicket(live, ticket.id);
}

/** A request that is refused before its first step leaves no event; its ticket says so. */
async function watchTicket(mine, id) {
  while (live === mine && mine.id === null && stream) {
    await new Promise((resolve) => setTimeout(resolve, TICKET_MS));
    const ticket = await call("GET", `/bus/requests/${id}`).then((answer) => answer.ticket, () => null);
    if (live !== mine || mine.id !== null || !ticket || ticket.state === "accepted") continue;
    if (ticket.state !== "done") {
      showProblem(new Problem(0, { detail: ticket.reason ?? `the request was ${ticket.state}` }));
    }
    live = null;
    refresh(true);
  }
}

async function install({ digest, from, version }) {
  const shown = live;
  const { ticket } = await call("POST", "/updates", { digest });
  begin("update", from, version, ticket, shown);
}

lend({
  busy: () => Boolean(live && !live.outcome),
  clear: () => { if (live?.outcome) live = null; },
  draw, install,
});

function adopt(id, kind, from, to) {
  if (live && (live.id === String(id) || (live.id === null && !live.outcome))) live.id = String(id);
  else live = follow(String(id), kind ?? "update", from, to);
  live.kind = kind ?? live.kind;
  live.from = from ?? live.from;
  live.to = to ?? live.to;
}

function reach(name, at) {
  const index = STEP[name];
  if (index === undefined || index < live.reached) return;
  if (index > live.reached) live.progress = live.progressNote = null;
  live.reached = index;
  live.active = !REACHED_IS_DONE.has(name);
  if (at) live.at[index] ??= Date.parse(at);
}

/** The exec has no event of its own: who was in the steps before it is in it now. */
function reachExec() {
  if (live.reached >= STEP.trial && live.reached <= STEP.stopping) reach("exec", null);
}

function onStep(event) {
  if (!status || earlier?.has(String(event.id))) return;
  adopt(event.id, null, event.from, event.to);
  if (live.outcome && !FINAL.has(event.step)) return; // replayed from before the outcome was known
  forget();
  if (event.step === "rolling-back") live.backing = true;
  else if (!FINAL.has(event.step) || event.step === "committed") reach(event.step, event.at);
  if (event.text && STEP[event.step] !== undefined) live.notes[STEP[event.step]] = event.text;
  for (const name of ["reason", "component"]) live[name] = event[name] ?? live[name];
  if (event.output?.length) live.output = event.output;
  if (FINAL.has(event.step)) {
    finish(event.step, Date.parse(event.at));
    refresh(true);
  } else {
    announce(event.text ?? STEPS[STEP[event.step]]?.title ?? "Going back");
    refresh();
  }
  draw();
}

function onProgress(event) {
  if (!live || live.outcome || live.id !== String(event.id)) return;
  live.progress = event.progress;
  live.progressNote = event.text ?? live.progressNote;
  draw();
}

function finish(outcome, at) {
  const first = !live.outcome;
  if (outcome === "rolled-back") reachExec(); // before it there is nothing to go back from
  live.outcome = outcome;
  live.endedAt = at || now();
  if (!first) return;
  announce(outcomeTitle());
  draw();
  if (document.activeElement === document.body) $("outcome-title").focus();
}

/** Brings the shown update in line with the status: it may run unseen, or have ended unseen. */
function followStatus() {
  const update = status.update;
  if (update) {
    if (live?.outcome && live.id === String(update.id)) return;
    adopt(update.id, update.kind, update.from, update.to);
    live.startedAt = Math.min(live.startedAt, Date.parse(update.started_at) || live.startedAt);
    live.missingSince = 0;
    if (update.phase === "rolling-back") live.backing = true;
    else if (STEP[PHASE_STEP[update.phase]] >= live.reached) {
      reach(PHASE_STEP[update.phase], null);
      live.active = true;
      live.progress = update.progress ?? live.progress;
      if (update.step) live.notes[live.reached] ??= update.step;
    }
  } else if (live && live.id !== null) {
    const attempt = history.find((line) => String(line.id) === live.id);
    if (attempt) {
      live.kind = attempt.kind;
      live.reason ??= attempt.reason;
      live.component ??= attempt.component;
      if (!live.output.length) live.output = attempt.output ?? [];
      reach(PHASE_STEP[attempt.step] ?? attempt.step, null);
      if (!live.outcome) finish({ done: "committed", "rolled-back": "rolled-back" }[attempt.outcome] ?? "failed", 0);
    } else if (!live.outcome) {
      live.missingSince ||= now();
      if (now() - live.missingSince > UNEXPLAINED_MS) live = null;
      else setTimeout(() => refresh(true), RECONNECT_MS);
    }
  }
}

function outcomeTitle() {
  if (live.outcome === "committed") return live.kind === "rollback" ? `Back on ${live.to}` : `${live.to} is installed`;
  if (live.outcome === "rolled-back") return `${live.to} failed; ${live.from} is running again`;
  return `${live.to} was not installed; ${live.from} is still running`;
}

function stepState(index) {
  if (live.outcome === "committed" || index < live.reached) return "done";
  const broken = live.backing || live.outcome !== null;
  if (index > live.reached) return broken ? "skipped" : "pending";
  if (broken) return "failed";
  return live.active ? "active" : "done";
}

function drawSteps(list, steps) {
  keyed(list, steps, ({ name }) => name, ({ name, title }) => h("li", { "data-step": name },
    h("span", { class: "mark", "aria-hidden": "true" }), h("b", {}, title), h("time"), h("p"),
    h("progress", { max: "1", "aria-label": title })), (item, { name, title, meaning }) => {
    const index = STEP[name];
    const state = stepState(index);
    item.dataset.state = state;
    if (state === "active") item.setAttribute("aria-current", "step"); else item.removeAttribute("aria-current");
    item.querySelector("b").replaceChildren(title, h("span", { class: "unseen" }, `: ${state}`));
    const progress = state === "active" || state === "failed" ? live.progressNote : null;
    text(item.querySelector("p"), progress ?? live.notes[index] ?? meaning);
    const next = Object.entries(live.at).filter(([other]) => Number(other) > index).map(([, at]) => at);
    const end = next.length ? Math.min(...next) : state === "active" ? now() : live.endedAt || null;
    const timed = live.at[index] && end && !REACHED_IS_DONE.has(name);
    text(item.querySelector("time"), timed ? span(end - live.at[index]) : "");
    const bar = item.querySelector("progress");
    show(bar, state === "active" && live.progress !== null);
    if (live.progress !== null) bar.value = live.progress;
  });
}

function drawRun() {
  voyage($("run-title"), live.from, live.to);
  text($("run-elapsed"), span((live.endedAt || now()) - live.startedAt));
  const kindSteps = live.kind === "rollback" ? STEPS.slice(STEP.preflight) : STEPS;
  const trial = (step) => STEP[step.name] >= STEP.trial;
  drawSteps($("steps-safe"), kindSteps.filter((step) => !trial(step)));
  drawSteps($("steps-trial"), kindSteps.filter(trial));
  text($("leg-safe"), `${live.from} keeps running; a failure here changes nothing`);
  text($("leg-trial"), `${live.to} takes over; a failure here goes back to ${live.from} by itself`);
  const place = $("outcome");
  const going = live.backing && !live.outcome;
  show(place, live.outcome !== null || going);
  place.dataset.tone = live.outcome === "committed" ? "good" : "bad";
  text($("outcome-title"), going ? `${live.to} failed; going back to ${live.from}…` : outcomeTitle());
  const reason = live.outcome === "committed" ? null : live.reason;
  show($("outcome-reason"), reason !== null);
  text($("outcome-reason"), reason);
  const wanted = live.outcome === "committed" ? "" : live.output.join("\n");
  show($("outcome-output"), wanted !== "");
  if (wanted && $("outcome-output").querySelector("pre")?.textContent !== wanted) {
    $("outcome-output").replaceChildren(outputBlock(live.output, live.component));
  }
  show($("outcome-close").parentElement, live.outcome !== null);
}

$("outcome-close").addEventListener("click", () => {
  live = null;
  draw();
  $("choose").focus();
});

async function goBack(button, version) {
  const from = status.release.version;
  const sure = await confirmed(`Go back to ${version}?`,
    `${from} is stopped and ${version} starts in its place; the listeners stay open. ` +
    `If ${version} does not become healthy, ${from} comes back by itself.`,
    `Go back to ${version}`);
  if (!sure) return;
  await attempt(button, async () => {
    const shown = live;
    const { ticket } = await call("POST", "/rollback", { version });
    begin("rollback", from, version, ticket, shown);
  });
  draw();
}

// ---- drawing ------------------------------------------------------------------------------------------------------

function drawHeader() {
  const { release, runtime, guard, bus } = status;
  text($("appliance"), status.appliance);
  text($("version"), release.version);
  const pill = $("release-state");
  const left = release.probation_ends_at ? Math.max(0, Date.parse(release.probation_ends_at) - now()) : null;
  const trial = left === null ? "on trial" : `on trial, ${Math.ceil(left / 1000)} s left`;
  const { state, reasons } = status.health ?? { state: "well", reasons: [] };
  const well = state === "well" ? "good" : state;
  text(pill, release.state === "good" ? well : trial);
  pill.dataset.tone = state === "down" ? "bad" : well === "good" && release.state === "good" ? "good" : "warn";
  pill.title = reasons.join("\n");
  const facts = {
    runtime: `runtime ${runtime.version}, pid ${runtime.pid}`, generation: `generation ${runtime.generation}`,
    up: `up ${age(runtime.started_at)}`, guard: `guard pid ${guard.pid}`, bus: `bus ${bus.state}`,
  };
  keyed($("facts"), Object.entries(facts), ([name]) => name, () => h("span"), (item, [, fact]) => text(item, fact));
  const doing = live && !live.outcome ? `${live.from} → ${live.to} · ` : "";
  document.title = `${doing}${status.appliance} ${release.version} · Refit`;
  show($("newer-page"), runtime.version !== pageRuntime && !(live && !live.outcome));
}

/** What keeps updates from being trusted, or will (a role that expires, a clock that is wrong, a damaged memory), and what an
 * update left to the admin. */
function drawWarnings() {
  const directory = `config/${status.release.version}`;
  const how = { kind: "which is of another kind (file, directory or link)", removed: "which changed" };
  const unmerged = (status.config?.unmerged ?? []).map(({ path, new_default, because }) => ["Configuration: ",
    `\`${directory}/${path}\` is as you left it; the release's default, ${how[because] ?? "which changed the same lines"}, is `
    + `\`${directory}/${new_default}\`: take from it what you need, then remove it`]);
  const unread = (status.config?.unread ?? []).map(({ path, why }) => ["Configuration: ",
    `\`${directory}${path ? `/${path}` : ""}\` cannot be read: ${why}`]);
  const trust = (status.trust?.warnings ?? []).map((warning) => ["Trust: ", warning]);
  keyed($("warnings"), [...trust, ...unmerged, ...unread], ([name, why]) => name + why,
    ([name, why]) => h("li", {}, h("b", {}, name), ...prose(why)), () => {});
}

function draw() {
  if (!status) return;
  drawHeader();
  drawWarnings();
  const mode = live ? "run" : standing();
  for (const name of ["run", "transfer", "package", "drop"]) show($(name), name === mode);
  if (mode === "run") drawRun();
  drawPackage();
  drawRepository(mode === "drop" ? status.repository : null);
  drawComponents(status.components, status.faults ?? []);
  const onTrial = status.release.state === "trial" ? status.release.version : null;
  drawReleases(releases, onTrial, status.update !== null || Boolean(live && !live.outcome), goBack);
  drawListeners(status.listeners);
  drawHistory(history);
}

$("reload").addEventListener("click", () => location.reload());
setInterval(() => {
  if (!status || document.hidden) return;
  if (live && !live.outcome && stream?.readyState !== EventSource.OPEN) refresh();
  draw(); // ages, countdown, elapsed time
}, 1000);

setInterval(() => { if (!document.hidden && status) followLogs(); }, LOGS_MS);
setInterval(() => { if (status) refresh(true); }, RECHECK_MS);

async function boot() {
  try {
    await open();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 401) return;
    show($("connection"), true);
    setTimeout(boot, RECONNECT_MS);
  }
}
boot().then(() => { if (status) show($("connection"), false); });
