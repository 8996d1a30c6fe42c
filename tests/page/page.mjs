// The admin page of a real appliance, driven in a browser as a person would: the whole scenario, from a wrong password
// to signing out.
//
// DEMO is the line that `refit demo --json` prints, CHROMIUM the browser. PICTURES, if set, is a directory that gets
// the page at each point of the scenario, wide and narrow, light and dark.

import { mkdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const WAIT_MS = 30_000;              // nothing in the scenario takes a third of it
const UPLOAD_BYTES_S = 6_000_000;    // slow enough that the progress of a package is seen, even on loopback
const UNLIMITED = -1;
const LOOKS = [
  { theme: "light", width: 1180 }, { theme: "dark", width: 1180 },
  { theme: "light", width: 400 }, { theme: "dark", width: 400 },
];
const HEIGHT = 860;

// What the browser itself logs about an answer or a connection; anything else on the console is a failure.
const NETWORK = [
  [/status of 401 .*\/api\/v1\/(status|session)$/, "nobody is signed in yet, or with a wrong password"],
  [/status of 4\d\d .*\/api\/v1\/packages$/, "the hostile package"],
  [/net::ERR_\w+ .*\/api\/v1\//, "the exec, or the runtime that crashed"],
];

const demo = JSON.parse(process.env.DEMO);
const { CHROMIUM = "/usr/bin/chromium", PICTURES } = process.env;
if (PICTURES) mkdirSync(PICTURES, { recursive: true });

let passed = 0;
const failures = [];

function check(ok, what) {
  console.log(`${ok ? "ok  " : "FAIL"} ${what.replace(/\s+/g, " ")}`);
  if (ok) passed += 1;
  else failures.push(what);
}

const browser = await chromium.launch({
  executablePath: CHROMIUM,
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const viewport = { width: LOOKS[0].width, height: HEIGHT };
const context = await browser.newContext({ viewport, reducedMotion: "reduce" });
const page = await context.newPage();
const devtools = await context.newCDPSession(page);
page.setDefaultTimeout(WAIT_MS);
page.on("pageerror", (error) => check(false, `the page throws ${error.stack}`));
page.on("console", (message) => {
  const line = `${message.text()} ${message.location().url}`;
  if (!["error", "warning"].includes(message.type()) || NETWORK.some(([pattern]) => pattern.test(line))) return;
  check(false, `the console says ${line}`);
});

const visible = (selector) => page.locator(selector).filter({ visible: true }).first().waitFor();
const text = async (selector) => (await page.locator(selector).first().innerText()).trim();

/** Takes a picture in each look; the page must fit the window in all of them. */
async function picture(name, fullPage = true) {
  for (const { theme, width } of LOOKS) {
    await page.emulateMedia({ colorScheme: theme, reducedMotion: "reduce" });
    await page.setViewportSize({ width, height: HEIGHT });
    const fits = await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
    if (!fits) check(false, `${name} is wider than a window of ${width} px`);
    if (PICTURES) await page.screenshot({ path: join(PICTURES, `${name}-${theme}-${width}.png`), fullPage });
  }
  await page.emulateMedia({ colorScheme: LOOKS[0].theme, reducedMotion: "reduce" });
  await page.setViewportSize(viewport);
}

/** Drops a file on the page as the file manager does. */
async function drop(name) {
  const data = { items: [], files: [join(demo.packages, name)], dragOperationsMask: 1 };
  const zone = await page.locator("#drop").boundingBox();
  const at = { x: zone.x + zone.width / 2, y: zone.y + zone.height / 2 };
  await page.bringToFront();
  for (const type of ["dragEnter", "dragOver"]) await devtools.send("Input.dispatchDragEvent", { type, ...at, data });
  const expected = await page.evaluate(() => document.body.classList.contains("dragging"));
  check(expected, `${name} is expected while it is dragged`);
  await devtools.send("Input.dispatchDragEvent", { type: "drop", ...at, data });
}

const choose = (name) => page.setInputFiles("#file", join(demo.packages, name));

async function uploadRate(rate) {
  await devtools.send("Network.emulateNetworkConditions",
    { offline: false, latency: 0, downloadThroughput: UNLIMITED, uploadThroughput: rate });
}

/** Notes each state that a step is seen in, from now on; a reload of the page would forget them. */
const watchSteps = () => page.evaluate(() => {
  window.seen = [];
  new MutationObserver((changes) => {
    for (const { target } of changes) window.seen.push(`${target.dataset.step} ${target.dataset.state}`);
  }).observe(document.getElementById("run"), { subtree: true, attributeFilter: ["data-state"] });
});

async function outcome() {
  await visible("#outcome-close");
  return text("#outcome-title");
}

async function closeOutcome(shown) {
  await page.click("#outcome-close");
  await visible("#drop");
  await page.waitForFunction((version) => document.querySelector("#version").textContent === version, shown);
  check(true, `the header shows ${shown}`);
}

const runtime = async () => {
  const facts = await text("#facts");
  return { pid: Number(/pid (\d+)/.exec(facts)[1]), generation: Number(/generation (\d+)/.exec(facts)[1]) };
};

async function signIn() {
  await page.goto(demo.page);
  await visible("#login");
  check(await page.evaluate(() => document.activeElement.id === "password"), "the password field has the focus");
  await page.fill("#password", "not it");
  await page.keyboard.press("Enter");
  await visible("#login-problem");
  check(await page.locator("#page").isHidden(), `a wrong password is refused: ${await text("#login-problem")}`);
  await picture("01-login");
  await page.fill("#password", demo.password);
  await page.keyboard.press("Enter");
  await visible("#page");
}

async function firstLook() {
  check(await text("#version") === "1.0.0", "the page shows version 1.0.0");
  const names = await page.locator("#components .fold").allInnerTexts();
  check(names.join() === "shop,stock", "and both components");
  check(/1\.0\.0\s+current/.test(await text("#releases li")), "and the release");
  check(await page.locator("#history, #history-empty").filter({ visible: true }).count() === 1, "and the history");
  const fold = page.locator("#components .fold").first();
  await fold.click();
  await page.locator("#components tr.detail pre", { hasText: "version 1.0.0" }).waitFor();
  check(true, "the opened component shows what it wrote");
  await picture("02-idle");
  await fold.click();
}

async function hostile() {
  await choose("hostile.refit");
  await visible("#problem");
  const [what, remedy] = await page.locator("#problem p").allInnerTexts();
  check(what.length > 0 && remedy.length > 0, `hostile.refit is refused: ${what} | ${remedy}`);
  await picture("03-refused");
  await page.locator("#problem button").click();
  await visible("#drop");
  check(await text("#version") === "1.0.0", "and nothing has changed");
}

async function goodUpdate() {
  const before = await runtime();
  await uploadRate(UPLOAD_BYTES_S);
  await drop("shop-1.1.0.refit");
  await page.waitForFunction(() => {
    const { value, parentElement } = document.getElementById("transfer-progress");
    return !parentElement.hidden && value > 0 && value < 1;
  });
  check(true, "the progress of the upload is shown");
  await picture("04-upload");
  await uploadRate(UNLIMITED);
  await visible("#package");
  check(await text("#install") === "Install 1.1.0", "then what the package is");
  await page.click("#package-files summary");
  const files = await page.locator("#package-files li").allInnerTexts();
  for (const name of ["bin/refit", "bin/shop", "lib/prices.txt", "config/shop.toml"]) {
    check(files.some((file) => file.includes(name)), `and that it changes ${name}`);
  }
  await picture("05-package");
  await watchSteps();
  await page.click("#install");
  await visible('#run [data-step="probation"][data-state="active"] progress');
  check(/on trial/.test(await text("#release-state")), "the header says that the release is on trial");
  await page.waitForFunction(() => document.querySelector('[data-step="probation"] progress').value > 0.4);
  check(/1\.1\.0\s+on trial/.test(await text("#releases li")), "and so do the releases");
  await picture("06-probation");
  const title = await outcome();
  check(title === "1.1.0 is installed", `the outcome: ${title}`);
  const seen = await page.evaluate(() => window.seen ?? []);
  for (const step of ["preflight", "stopping", "exec", "probation"]) {
    check(seen.some((change) => change.startsWith(step)), `step ${step} was followed live`);
  }
  const steps = await page.locator("#run [data-step]").evaluateAll((items) => items.map((item) => item.dataset.state));
  check(steps.length > 0 && steps.every((state) => state === "done"), "all steps are done");
  const after = await runtime();
  check(after.pid === before.pid, `the runtime has still PID ${before.pid}`);
  check(after.generation === before.generation + 1, `and is generation ${after.generation}`);
  await picture("07-done");
  await closeOutcome("1.1.0");
}

/** `step` is where it must be shown to fail, `said` a part of the last output that must be shown with the reason. */
async function badUpdate(version, step, said) {
  await choose(`shop-${version}.refit`);
  await visible("#package");
  await page.click("#install");
  const title = await outcome();
  check(title === `${version} failed; 1.1.0 is running again`, `the outcome: ${title}`);
  const crossed = page.locator('#run [data-state="failed"]');
  const failed = await crossed.evaluateAll((items) => items.map((item) => item.dataset.step));
  check(failed.join() === step, `it failed in step ${failed.join()}`);
  const reason = await text("#outcome-reason");
  check(reason.length > 0, `its reason: ${reason}`);
  check((await text("#outcome-output pre")).includes(said), `its last output: ${said}`);
  await picture(`08-${version}-rolled-back`);
  await closeOutcome("1.1.0");
  const row = page.locator("#history tbody tr:not(.detail)").first();
  const line = await row.innerText();
  check(line.includes(version) && line.includes("rolled back") && line.includes(reason), "the history says so, too");
  await row.locator(".fold").click();
  const kept = await page.locator("#history tr.detail:not([hidden]) pre").first().innerText();
  check(kept.includes(said), "with the last output");
  if (version === "1.3.0") await picture("09-history");
  await row.locator(".fold").click();
}

async function rollback() {
  const before = await runtime();
  const button = page.getByRole("button", { name: "Go back to 1.0.0" });
  await button.click();
  await visible("#confirm");
  check(await page.evaluate(() => document.activeElement.value === "no"), "the dialog proposes not to go back");
  await picture("10-dialog", false);
  await page.keyboard.press("Escape");
  await page.waitForSelector("#confirm:not([open])", { state: "attached" });
  check(await page.locator("#run").isHidden(), "Escape changes nothing");
  await button.click();
  await page.click("#confirm-yes");
  await visible('#run [data-step="probation"][data-state="active"]');
  await picture("11-rollback");
  const title = await outcome();
  check(title === "Back on 1.0.0", `the outcome: ${title}`);
  const after = await runtime();
  check(after.pid === before.pid && after.generation === before.generation + 1, "the same process, one generation on");
  await closeOutcome("1.0.0");
}

async function reloadMidway() {
  await page.click("#repository-check");
  await visible("#repository-answer button");
  const offer = await text("#repository-answer");
  check(offer.startsWith("1.1.0 is there"), `the repository says: ${offer}`);
  await picture("12-repository");
  await page.click("#repository-answer button");
  await visible("#package");
  check(await text("#install") === "Install 1.1.0", "a release of the repository is shown like one that was sent");
  await page.click("#install");
  await visible('#run [data-step="probation"][data-state="active"]');
  await page.reload();
  await visible('#run [data-step="probation"][data-state="active"]');
  check(await text("#run-title") === "1.0.0 → 1.1.0", "a page loaded in the middle of an update shows it");
  const title = await outcome();
  check(title === "1.1.0 is installed", `and its end: ${title}`);
  await closeOutcome("1.1.0");
  await page.click("#repository-check");
  await page.waitForFunction(() => /nothing newer/.test(document.querySelector("#repository-answer").textContent));
  check(await text("#repository-answer") === "There is nothing newer than 1.1.0.", "then it has nothing newer");
  await picture("13-end");
}

async function trustWarning() {
  check(await page.locator("#warnings").isHidden(), "nothing is wrong with what is trusted");
  const root = join(demo.home, "trust", "root.json");
  renameSync(root, `${root}.gone`);
  await page.reload();
  await visible("#warnings li");
  const warning = await text("#warnings li");
  check(warning.includes("no root is trusted") && warning.includes("refit trust reset"), `a lost root: ${warning}`);
  await picture("14-trust");
  renameSync(`${root}.gone`, root);
  await page.reload();
  await visible("#page");
  check(await page.locator("#warnings").isHidden(), "with the root back, so is the trust");
}

async function signOut() {
  await page.click("#logout");
  await visible("#login");
  await page.reload();
  await visible("#login");
  check(await page.locator("#page").isHidden(), "signed out, and still so after a reload");
}

try {
  await signIn();
  await firstLook();
  await hostile();
  await goodUpdate();
  await badUpdate("1.2.0", "starting", "cannot open the catalogue");
  await badUpdate("1.3.0", "probation", "version 1.3.0 serves");
  await badUpdate("1.4.0", "exec", "cannot map the session table");
  await rollback();
  await reloadMidway();
  await trustWarning();
  await signOut();
} catch (error) {
  check(false, error.stack.split("Browser logs")[0]);
  if (!page.isClosed()) await picture("error");
}
await browser.close();
for (const what of failures) console.log(`failed: ${what}`);
console.log(`${passed} passed, ${failures.length} failed`);
process.exitCode = failures.length > 0 ? 1 : 0;
