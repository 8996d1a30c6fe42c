// The package: choosing a file or a release of the repository, sending or fetching it, showing what it holds.
//
// There is one at a time: on its way (`transfer`), or received and not yet decided on (`offered`). Whether there is room
// for one, and what becomes of it, is the page's to say.

import {
  $, API, Problem, announce, attempt, bytes, call, h, plural, prose, sessionSecret, show, showProblem, text, voyage,
} from "./lib.js";

const FOREIGN_MS = 3_000;  // a package from elsewhere is no longer mentioned when it has been silent for this long
const CHECK_MS = 120_000;  // a repository may be slow to answer; the appliance itself gives up before

let transfer = null; // { abort, fetched }: what is on its way, and whether the appliance fetches it
let offered = null;  // the answer to it: what the package holds
let foreignTimer = 0;
let page = null;

/** Takes what the page lends: `busy`, `clear`, `draw`, `install`. */
export function lend(functions) { page = functions; }

/** Which part of the page belongs to the package now. */
export const standing = () => (transfer ? "transfer" : offered ? "package" : "drop");

export function forget() { offered = null; }

export function stopTransfer() { transfer?.abort(); }

// ---- on its way ---------------------------------------------------------------------------------------------------

/** Makes room for a package and shows that it comes; returns whether there was room. */
function begin(name, total, next) {
  if (transfer || page.busy()) return false;
  show($("problem"), false);
  page.clear();
  // The one it replaces; should that fail, staging is emptied at the next start anyway.
  if (offered) call("DELETE", `/packages/${offered.digest}`).catch(() => {});
  offered = null;
  transfer = next;
  text($("transfer-name"), name);
  text($("transfer-bytes"), total === null ? "Asking the repository…" : bytes(total));
  if (total === null) $("transfer-progress").removeAttribute("value"); else $("transfer-progress").value = 0;
  return true;
}

/** Shows how far it is; without a count, that it is being checked. */
function arrived(received, total) {
  const bar = $("transfer-progress");
  if (received === undefined || received === total) {
    bar.removeAttribute("value");
    text($("transfer-bytes"), "Checking the package…");
  } else {
    bar.value = total ? received / total : 0;
    text($("transfer-bytes"), `${bytes(received)} of ${bytes(total)}`);
  }
}

/** Ends the transfer: with a package, with a problem, or with neither. */
function end(received, problem) {
  transfer = null;
  offered = received;
  if (problem) showProblem(problem);
  if (received) $("downgrade").checked = false;
  page.draw();
  if (!received) return;
  announce(`Package ${received.appliance} ${received.version} is ready to install`);
  $("package-title").focus();
}

const query = () => ($("downgrade").checked ? "?allow_downgrade=true" : "");

export function send(file) {
  const request = new XMLHttpRequest();
  if (!begin(file.name, file.size, { abort: () => request.abort(), fetched: false })) return;
  request.upload.addEventListener("progress", (event) => arrived(event.loaded, event.total));
  request.upload.addEventListener("load", () => arrived());
  request.addEventListener("abort", () => { request.aborted = true; });
  request.addEventListener("loadend", () => {
    const answer = request.response ?? {};
    if (request.status === 201) return end(answer, null);
    if (request.status === 401) {
      end(null, null);
      return dispatchEvent(new Event("signed-out"));
    }
    if (request.status) {
      const why = answer.detail ?? answer.title ?? `the appliance answered ${request.status}`;
      return end(null, new Problem(request.status, { ...answer, detail: `${file.name} was not accepted: ${why}` }));
    }
    const detail = "the upload was cut off; nothing was changed";
    return end(null, request.aborted ? null : new Problem(0, { detail, remedy: "send the package again" }));
  });
  request.open("PUT", `${API}/packages${query()}`);
  request.setRequestHeader("content-type", "application/octet-stream");
  request.setRequestHeader("refit-secret", sessionSecret());
  request.responseType = "json";
  request.send(file);
  announce(`Sending ${file.name}`);
  page.draw();
}

/** Has the appliance fetch a release from its repository. */
async function get(version) {
  const request = new AbortController();
  if (!begin(`${version} from the repository`, null, { abort: () => request.abort(), fetched: true })) return;
  announce(`Getting ${version} from the repository`);
  page.draw();
  try {
    const wanted = { version, allow_downgrade: $("downgrade").checked };
    end(await call("POST", "/packages", wanted, request.signal), null);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    end(null, request.signal.aborted || error.status === 401 ? null : error);
  }
}

/** What the appliance says of a package that arrives: one that it fetches for this page, or somebody else's. */
export function progressed(event) {
  if (transfer?.fetched) return arrived(event.received_bytes, event.total_bytes);
  if (transfer || offered) return;
  const place = $("foreign");
  const total = event.total_bytes ? ` of ${bytes(event.total_bytes)}` : "";
  const far = event.received_bytes === undefined ? "it is being checked" : `${bytes(event.received_bytes)}${total}`;
  text(place, `A package is being sent from elsewhere: ${far}`);
  show(place, true);
  clearTimeout(foreignTimer);
  foreignTimer = setTimeout(() => show(place, false), FOREIGN_MS);
}

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) send(file);
  event.target.value = ""; // the same file can be chosen again
});
$("transfer-cancel").addEventListener("click", stopTransfer);

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault(); // a file dropped beside the zone must not replace the page
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (!$("page").hidden && event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
});

// ---- the repository -----------------------------------------------------------------------------------------------

/** Shows the repository that is configured; `null` if there is none, or no room for a package now. */
export function drawRepository(address) {
  show($("repository"), Boolean(address));
  text($("repository-address"), address);
}

$("repository-check").addEventListener("click", (event) => attempt(event.target, async () => {
  const place = $("repository-answer");
  place.replaceChildren("Asking…");
  try {
    const { current, newer, releases } = await call("GET", "/repository", undefined, AbortSignal.timeout(CHECK_MS));
    const offer = releases.find(({ version }) => version === newer);
    if (offer) {
      const button = h("button", { type: "button", class: "small", onclick: () => get(newer) }, `Get ${newer}`);
      place.replaceChildren(`${newer} is there, ${bytes(offer.payload_bytes)} at most. `, button);
    } else {
      const { version, failed_before: reason } = releases.at(-1) ?? {};
      const why = reason ? [` ${version} failed here before: `, ...prose(reason)] : [];
      place.replaceChildren(`There is nothing newer than ${current}.`, ...why);
    }
  } catch (error) {
    place.replaceChildren();
    throw error;
  }
}));

// ---- what it holds ------------------------------------------------------------------------------------------------

export function drawPackage() {
  const shown = $("package").dataset.digest;
  $("package").dataset.digest = offered?.digest ?? "";
  if (!offered || shown === offered.digest) return;
  const { added, changed, removed } = offered.changes ?? { added: [], changed: [], removed: [] };
  voyage($("package-title"), `${offered.appliance} ${offered.from ?? ""}`.trim(), offered.version);
  const warnings = [];
  if (offered.failed_before) warnings.push(["Failed here before: ", offered.failed_before]);
  if (offered.expired) warnings.push(["Expired: ", "its signatures are past their date"]);
  if (offered.clock_behind) {
    warnings.push(["The clock is wrong: ", `a release that was accepted here was made at ${offered.clock_behind}`]);
  }
  $("package-warnings").replaceChildren(...warnings.map(([name, why]) => h("li", {}, h("b", {}, name), ...prose(why))));
  const figures = [
    ["Package", bytes(offered.packed_bytes)], ["Installed", bytes(offered.installed_bytes)],
    ["To write", bytes(offered.written_bytes)], ["Shared, not written", bytes(offered.linked_bytes)],
  ];
  const figure = ([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  $("package-facts").replaceChildren(...figures.map(figure));
  const changes = `${plural(changed.length, "file")} changed, ${added.length} added, ${removed.length} removed`;
  // What runs is damaged, so nobody knows what changes.
  text($("package-changes"), offered.changes ? changes : "What changes is unknown: the running release is damaged");
  const files = Object.entries({ changed, added, removed })
    .flatMap(([kind, names]) => names.map((name) => h("li", {}, h("span", {}, kind), name)));
  $("package-files").querySelector("ul").replaceChildren(...files);
  text($("install"), `Install ${offered.version}`);
}

$("install").addEventListener("click", (event) => attempt(event.target, () => page.install(offered)));
$("discard").addEventListener("click", (event) => attempt(event.target, async () => {
  await call("DELETE", `/packages/${offered.digest}`);
  offered = null;
  page.draw();
  $("choose").focus();
}));
