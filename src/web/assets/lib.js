// What every part of the page stands on: the document, figures for readers, and calls to the API.
//
// Text from outside reaches the document as text nodes only; nothing here parses HTML. A call that meets no session
// sends the event `signed-out` to the window, once, whoever made it.

export const API = "/api/v1";
const ANSWER_MS = 10_000; // longer than any handover keeps a connection waiting in the backlog

// ---- document -----------------------------------------------------------------------------------------------------

export const $ = (id) => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

/** Sets the text only when it differs: a screen reader and a selection are not disturbed for nothing. */
export function text(element, value) {
  const wanted = value === null || value === undefined ? "" : String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Makes `parent` hold one child per item, in order, keeping the children it already has. */
export function keyed(parent, items, key, create, update) {
  const left = new Set(parent.children);
  const old = new Map([...left].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const name = String(key(item));
    const child = old.get(name) ?? create(item);
    child.dataset.key = name;
    old.delete(name);
    left.delete(child);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
    update(child, item);
  });
  for (const child of left) child.remove();
}

export const announce = (message) => text($("announce"), message);

export function voyage(element, from, to) {
  element.replaceChildren(...(from && from !== to ? [h("span", { class: "from" }, `${from} → `)] : []), to ?? "");
}

export function outputBlock(lines, component) {
  const label = component ? `Last output of ${component}` : "Last output of the runtime";
  const pre = h("pre", { tabindex: "0", role: "region", "aria-label": label }, lines.join("\n"));
  queueMicrotask(() => { pre.scrollTop = pre.scrollHeight; }); // in place by then; the end is what tells why
  return h("div", {}, h("p", { class: "output-title" }, label), pre);
}

/** Returns a message as nodes: what stands between backquotes is code. */
export function prose(message) {
  return message.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));
}

// ---- figures ------------------------------------------------------------------------------------------------------

let clockSkewMs = 0; // an appliance's clock may be far from the browser's; ages are counted on its clock
export const now = () => Date.now() + clockSkewMs;

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  let value = count ?? 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export function span(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

export function age(at) {
  const seconds = Math.max(0, Math.floor((now() - Date.parse(at)) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d`;
}

export function clock(at) {
  const date = new Date(at);
  const two = (number) => String(number).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// ---- the API ------------------------------------------------------------------------------------------------------

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? body.title ?? `the appliance answered ${status}`);
    this.status = status;
    this.remedy = body.remedy ?? null;
  }
}

const SECRET = "refit-secret";
let secret = null; // where the browser keeps nothing for pages

/** Keeps the session's second secret, which no other page of this machine can read; `null` forgets it. */
export function keepSecret(value) {
  secret = value;
  try {
    if (value === null) localStorage.removeItem(SECRET);
    else localStorage.setItem(SECRET, value);
  } catch { /* it is kept as long as the page is open */ }
}

/** Returns the session's second secret; empty if there is none. */
export function sessionSecret() {
  if (secret) return secret;
  try {
    return localStorage.getItem(SECRET) ?? "";
  } catch {
    return "";
  }
}

/** Asks the API. `signal` ends the waiting; without one it is `ANSWER_MS` that do. */
export async function call(method, path, body, signal = AbortSignal.timeout(ANSWER_MS)) {
  let response;
  try {
    response = await fetch(API + path, {
      method,
      headers: { [SECRET]: sessionSecret(), ...(body === undefined ? {} : { "content-type": "application/json" }) },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      signal,
    });
    const date = Date.parse(response.headers.get("date") ?? "");
    const skew = date - Date.now();
    clockSkewMs = Math.abs(skew) > 2000 ? skew : 0; // the header counts whole seconds
  } catch {
    throw new Problem(0, { detail: "the appliance cannot be reached", remedy: "check that it runs, then try again" });
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const signedOut = response.status === 401 || answer.code === "secret_missing";
  if (signedOut && path !== "/session") dispatchEvent(new Event("signed-out"));
  throw new Problem(response.status, answer);
}

export function showProblem(problem, place = $("problem")) {
  if (problem.status === 401 && place === $("problem")) return; // the login form has taken over
  const remedy = problem.remedy ? `To do: ${problem.remedy}` : "";
  place.replaceChildren(h("p", {}, ...prose(problem.message)), h("p", {}, ...prose(remedy)));
  show(place, true);
  if (place !== $("problem")) return;
  place.append(h("button", { type: "button", class: "small", onclick: () => show(place, false) }, "Close"));
  place.scrollIntoView({ block: "nearest" });
}

/** Runs what a button asks for: the button waits with it, and what went wrong is shown. */
export async function attempt(button, action) {
  show($("problem"), false);
  if (button) button.disabled = true;
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(error);
  } finally {
    if (button) button.disabled = false;
  }
}

export function confirmed(title, body, yes) {
  text($("confirm-title"), title);
  text($("confirm-text"), body);
  text($("confirm-yes"), yes);
  const dialog = $("confirm");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
