// Fetch the data at intervals, and redraw each part of the page when its data has changed.

import { bars, columns, count, element, sparkline, table, timeText } from "./charts.js";

const TONES = { ingested: "good", accepted: "good", stored: "good", success: "good", duplicate: "known", replaced: "known", superseded: "known", quarantined: "warn", failed_transient: "warn", failed: "bad", failed_permanent: "bad" };
const ORDER = Object.keys(TONES);
const KINDS = { file: "File", polling_job: "Polling job", attachment_event: "Attachment event", attachment: "Attachment", stream_partition: "Stream partition", lost_offsets: "Lost offsets", action: "Action" };
const WORDS = { failed_transient: "will be retried", failed_permanent: "failed for good" };
const LOST_AFTER_MS = 10_000;

const find = (id) => document.getElementById(id);
const shown = new Map();
let chosen = localStorage.getItem("window") ?? "1h";
let timer = null, request = null, lastAnswer = 0, pause = 2_000;

async function refresh() {
  clearTimeout(timer);
  request?.abort();
  const mine = (request = new AbortController());
  try {
    const answer = await fetch(`dashboard.json?window=${chosen}`, { signal: mine.signal, headers: { accept: "application/json" } });
    if (answer.status === 401) return location.assign("login");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    receive(await answer.json());
  } catch (error) {
    if (error.name === "AbortError") return;
    console.warn("The monitor does not answer:", error);
  }
  if (mine === request && !document.hidden) timer = setTimeout(refresh, pause);
  showLiveness();
}

function receive(seen) {
  lastAnswer = Date.now();
  pause = seen.refresh_seconds * 1000;
  show(seen);
}

function showLiveness() {
  const silent = Date.now() - lastAnswer;
  const state = !lastAnswer ? "waiting" : silent < Math.max(LOST_AFTER_MS, 3 * pause) ? "live" : "lost";
  const text = { waiting: "connecting", live: "live", lost: `the monitor has not answered for ${length(silent / 1000)}` }[state];
  const live = find("live");
  if (live.dataset.state !== state) live.dataset.state = state;
  if (live.textContent !== text) live.textContent = text;
}

function show(seen) {
  const parts = {
    environment: [[seen.environment], () => seen.environment],
    health: [seen.health.map(({ name, ok, detail }) => [name, ok, ok || detail]), () => health(seen.health)],
    figures: [[seen.history, seen.topics, seen.retry_tiers, seen.failures?.length], () => figures(seen)],
    files: [[seen.history], () => files(seen.history)],
    rows: [[seen.history], () => rows(seen.history)],
    lag: [[seen.topics], () => lag(seen.topics)],
    latency: [[seen.history?.latency], () => latency(seen.history)],
    reasons: [[seen.history?.file_reasons, seen.history?.row_reasons], () => reasons(seen.history)],
    downloads: [[seen.history?.downloads, seen.history?.failures], () => downloads(seen.history)],
    retry_tiers: [[seen.retry_tiers], () => retry_tiers(seen.retry_tiers)],
    running: [[seen.runs, seen.unfinished, minuteOf(seen)], () => running(seen)],
    dead: [[seen.topics?.dead_letters, seen.unidentified], () => dead(seen)],
    streams: [[seen.history?.messages, seen.tables], () => streams(seen)],
    sources: [[seen.sources, minuteOf(seen)], () => sources(seen.sources, seen.at)],
    incidents: [[seen.incidents, minuteOf(seen)], () => incidents(seen)],
    problems: [[seen.problems], () => problems(seen.problems)],
    failures: [[seen.failures, minuteOf(seen)], () => failures(seen.failures, seen.at)],
  };
  for (const [id, [what, make]] of Object.entries(parts)) {
    const text = JSON.stringify([seen.window, what]);
    if (shown.get(id) === text) continue;
    shown.set(id, text);
    redraw(find(id), [make()].flat().filter(Boolean));
  }
  find("dagster").href = seen.dagster_url;
  find("at").textContent = `Seen at ${timeText(seen.at)}`;
}

// Who moves through the page with the keyboard stays at the same control.
function redraw(part, nodes) {
  const controls = () => [...part.querySelectorAll("a[href], button, summary, [tabindex]")];
  const at = controls().indexOf(document.activeElement);
  part.replaceChildren(...nodes);
  if (at >= 0) controls().slice(0, at + 1).at(-1)?.focus({ preventScroll: true });
}

// Ages are shown in coarse steps: no need to redraw each second.
const minuteOf = (seen) => Math.floor(Date.parse(seen.at) / 5_000);
const empty = (text) => element("p", { class: "empty" }, text);
const away = (what) => element("p", { class: "away" }, `${what} does not answer.`);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const totals = (series) => Object.fromEntries(Object.entries(series).map(([label, values]) => [label, sum(values)]));

function length(seconds) {
  if (seconds < 10) return `${Math.round(seconds * 10) / 10} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7_200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3_600)} h` : `${Math.round(seconds / 86_400)} d`;
}

function bytes(value) {
  const unit = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(4, Math.floor(Math.log10(Math.max(value, 1)) / 3));
  return `${count(Math.round((value / 1000 ** power) * 10) / 10)} ${unit[power]}`;
}

const health = (lines) => lines.map(({ name, ok, detail }) =>
  element("li", ok ? { title: detail } : { class: "down" },
    element("span", {}, name, element("span", { class: "hidden-text" }, ok ? " is up" : " is down")), element("small", {}, detail)));

function figures(seen) {
  const { history, topics } = seen;
  const none = "–";
  const perMinute = (series) => {
    // The last step is incomplete: the rate is that of the five minutes before it.
    const steps = Math.max(1, Math.round(5 / history.step_minutes));
    return Object.values(series).reduce((total, values) => total + sum(values.slice(-steps - 1, -1)), 0) / (steps * history.step_minutes);
  };
  const rate = (series) => {
    const value = perMinute(series);
    return value < 10 ? count(Math.round(value * 10) / 10) : count(Math.round(value));
  };
  const done = history ? totals(history.files) : {};
  const finished = sum(Object.values(done));
  const bad = (done.quarantined ?? 0) + (done.failed ?? 0);
  const share = finished ? Math.floor((1000 * (finished - bad)) / finished) / 10 : null;
  const waiting = topics ? sum(topics.lags.map((one) => one.waiting ?? 0)) : null;
  const kept = topics ? sum(topics.dead_letters.map((one) => one.kept)) : null;
  const p95 = history?.latency.files?.percentiles[1];
  const entry = (name, value, unit, note, tone) =>
    element("div", { class: tone }, element("dt", {}, name), element("dd", {}, value, unit && element("small", {}, unit)), element("dd", { class: "note" }, note));
  return [
    entry("Files", history ? rate(history.files) : none, "/ min", history ? `${count(finished)} in the window` : "unknown"),
    entry("Rows", history ? rate(history.rows) : none, "/ min", history ? `${count(sum(Object.values(totals(history.rows))))} in the window` : "unknown"),
    entry("Good files", share === null ? none : `${share} %`, "", finished ? `${count(bad)} quarantined or failed` : "none in the window", share !== null && share < 80 ? "warn" : ""),
    entry("p95, file to stored", p95 === null || p95 === undefined ? none : length(p95), "", "seen from the Kafka message"),
    entry("Waiting messages", waiting === null ? none : count(waiting), "", waiting === null ? "unknown" : `on ${topics.lags.filter((one) => one.waiting).length} of ${topics.lags.length} topics`),
    entry("Dead letters kept", kept === null ? none : count(kept), "", kept === null ? "unknown" : seen.unidentified ? `and ${count(seen.unidentified)} unidentified` : "in all topics", kept ? "bad" : ""),
  ];
}

function overTime(card, history, series, title, nothing) {
  if (!history) return away("The warehouse");
  const labels = Object.keys(series).sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
  if (!labels.some((label) => series[label].some(Boolean))) return empty(nothing);
  const open = card.querySelector("details")?.open;
  return columns({
    title, open, starts: history.starts, stepMinutes: history.step_minutes,
    series: labels.map((label) => ({ label, tone: TONES[label] ?? "accent", values: series[label] })),
  });
}

const files = (history) => overTime(find("files"), history, history?.files ?? {}, title("Files", history), "No file finished in this window.");
const rows = (history) => overTime(find("rows"), history, history?.rows ?? {}, title("Rows", history), "No rows were stored in this window.");
const title = (what, history) => `${what} per ${history?.step_minutes === 1 ? "minute" : length((history?.step_minutes ?? 1) * 60)}`;

function lag(topics) {
  if (!topics) return away("The broker");
  const busy = topics.lags.filter((one) => one.waiting || one.problem);
  const still = topics.lags.filter((one) => !one.waiting && !one.problem);
  const most = Math.max(...busy.map((one) => one.waiting ?? 0), 1);
  const list = busy.length ? bars(busy.map((one) => ({
    label: one.topic, text: one.problem ? "unknown" : count(one.waiting), parts: [["accent", one.waiting ?? 0]],
  })), most) : empty("Nothing waits: every message has been consumed.");
  const caughtUp = still.length ? element("p", { class: "quiet-list" }, `Caught up: ${still.map((one) => one.topic).join(", ")}`) : null;
  const cells = topics.lags.flatMap((one) => Object.entries(one.partitions).map(([partition, waiting]) => [`${one.topic} [${partition}]`, count(waiting)]));
  return [list, caughtUp, cells.length ? element("details", { open: find("lag").querySelector("details")?.open }, element("summary", {}, "By partition"),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Lag by partition" }, table(["Topic", "Waiting"], cells, "Waiting messages by partition"))) : null];
}

function latency(history) {
  if (!history) return away("The warehouse");
  const pipelines = Object.entries(history.latency).sort(([, one], [, other]) => other.count - one.count);
  if (!pipelines.length) return empty("Nothing was stored in this window.");
  return pipelines.flatMap(([name, { count: of, percentiles }]) => [
    element("h3", {}, `${count(of)} ${name.replaceAll("_", " ")}`),
    element("dl", { class: "percentiles" }, ["median", "95 % within", "99 % within"].map((label, i) =>
      element("div", {}, element("dt", {}, label), element("dd", {}, percentiles[i] === null ? "over a day" : length(percentiles[i]))))),
  ]);
}

function reasons(history) {
  if (!history) return away("The warehouse");
  const groups = [["Whole files", history.file_reasons], ["Rows of other files", history.row_reasons]].filter(([, list]) => list.length);
  if (!groups.length) return empty("Nothing was refused in this window.");
  const part = ([heading, list]) => {
    const top = list.slice(0, 6);
    return [
      element("h3", {}, heading),
      bars(top.map(([reason, number]) => ({ label: reason.replaceAll("_", " "), text: count(number), parts: [["warn", Math.log1p(number)]] })), Math.log1p(top[0][1])),
    ];
  };
  return [...groups.flatMap(part), element("p", { class: "quiet-list" }, "The bars grow with the order of magnitude.")];
}

function downloads(history) {
  if (!history) return away("The warehouse");
  const attempts = Object.entries(history.downloads);
  if (!attempts.length) return empty("Nothing was downloaded in this window.");
  const most = Math.max(...attempts.map(([, ends]) => sum(Object.values(ends))));
  const text = (ends) => ORDER.filter((status) => ends[status]).map((status) => `${count(ends[status])} ${WORDS[status] ?? status}`).join(", ");
  const why = Object.entries(history.failures).slice(0, 6).map(([reason, number]) => [reason, count(number)]);
  return [
    bars(attempts.map(([attempt, ends]) => ({ label: `Attempt ${attempt}`, text: text(ends), parts: ORDER.filter((status) => ends[status]).map((status) => [TONES[status], ends[status]]) })), most),
    why.length ? element("h3", {}, "Why attempts failed") : null, why.length ? table(["Error", "Attempts"], why, "Failed attempts by error") : null,
  ];
}

function retry_tiers(tiers) {
  if (!tiers) return away("The warehouse");
  return element("ol", { class: "tiers" }, tiers.map((tier) => element("li", tier.waiting ? { class: "busy" } : {},
    element("small", {}, length(tier.delay_seconds)),
    element("span", {}, `attempt ${tier.attempt} `, tier.waiting ? element("small", {}, tier.next_due_seconds ? `next in ${length(tier.next_due_seconds)}` : "due now") : null),
    element("strong", {}, count(tier.waiting)))));
}

function since(moment, now) {
  return element("time", { datetime: moment, title: timeText(moment) }, length(Math.max(0, (Date.parse(now) - Date.parse(moment)) / 1000)));
}

function running(seen) {
  const unfinished = seen.unfinished && Object.entries(seen.unfinished).flatMap(([kind, states]) => Object.entries(states).map(([state, number]) => [`${KINDS[kind]}, ${state}`, count(number)]));
  const waiting = unfinished?.length ? table(["In the work queues", "Entries"], unfinished, "Unfinished entries") : null;
  if (!seen.runs) return [away("Dagster"), waiting];
  const { queued, started, running: runs } = seen.runs;
  if (!runs.length) return [empty("Nothing runs, nothing is queued."), waiting];
  return [
    element("h3", {}, `${count(started)} started, ${count(queued)} queued`),
    element("ul", { class: "runs" }, runs.map((run) => element("li", {},
      element("a", { href: run.url }, run.run_id.slice(0, 8)), element("span", { class: "what" }, run.what || run.job),
      element("span", { class: `state ${run.status}` }, run.status), since(run.since, seen.at)))),
    waiting,
  ];
}

function dead(seen) {
  if (!seen.topics) return away("The broker");
  const letters = seen.topics.dead_letters.filter((one) => one.written);
  const rest = seen.unidentified ? element("p", { class: "quiet-list" }, `CRM messages kept apart, not identified: ${count(seen.unidentified)}`) : null;
  if (!letters.length) return [empty("No dead letter was ever written."), rest];
  return [table(["Topic", "kept", "ever"], letters.map((one) => [one.topic, count(one.kept), count(one.written)]), "Dead letters by topic"), rest];
}

function streams(seen) {
  const messages = Object.entries(seen.history?.messages ?? {}).flatMap(([topic, outcomes]) => Object.entries(outcomes).map(([outcome, number]) => [`${topic}: ${outcome.replaceAll("_", " ")}`, count(number)]));
  const tables = (seen.tables ?? []).map((one) => [one.table, one.rows === null ? "–" : count(one.rows), count(one.commits), bytes(one.size_bytes)]);
  if (!messages.length && !tables.length) return seen.history ? empty("No stream has been stored yet.") : away("The warehouse");
  return [
    messages.length ? table(["In the window", "Messages"], messages, "Messages by outcome") : null,
    tables.length ? table(["Delta table", "rows", "commits", "size"], tables, "Delta tables") : null,
  ];
}

function sources(seen, now) {
  if (!seen) return away("The warehouse");
  if (!seen.known) return empty("No file of recent weeks is known yet.");
  const measure = (one) => element("li", one.outside ? { class: "unusual" } : {},
    `${one.measure} ${one.value}`, element("small", {}, one.usual ? ` usual: ${one.usual}` : " no baseline yet"));
  const mark = (one) => one.outside ? ["quarantined", "not usual"] : one.judgements.some((judged) => judged.usual) ? ["started", "as usual"] : ["", "no baseline yet"];
  const row = (one) => element("tr", {},
    element("td", { class: "name" }, element("a", { href: one.url, title: one.file }, one.source), element("small", {}, ` ${one.dataset}`)),
    element("td", {}, element("span", { class: `state ${mark(one)[0]}`, title: one.verdict }, mark(one)[1])),
    element("td", { class: "reason" }, element("ul", { class: "measures" }, one.judgements.map(measure))),
    element("td", {}, sparkline(one.rows, `Rows of the last ${one.rows.length} files`)),
    element("td", { class: "number" }, since(one.at, now)));
  return [
    element("table", { class: "failures" },
      element("caption", { class: "hidden-text" }, "Last file of each source next to what is usual"),
      element("thead", {}, element("tr", {}, ["Source", "Last file", "Measured", "Rows lately", "Ago"].map((head, i) => element("th", i === 4 ? { scope: "col", class: "number" } : { scope: "col" }, head)))),
      element("tbody", {}, seen.first.map(row))),
    element("p", { class: "quiet-list" }, `${count(seen.outside)} of ${count(seen.known)} sources are not usual.${seen.known > seen.first.length ? " The others: ingest baselines." : ""}`),
  ];
}

// Texts may be a stranger's: only addresses of this site and of the configured ones become links.
function linked(text, sites) {
  const known = (url) => URL.canParse(url) && [location.origin, ...sites].some((site) => site && `${url}/`.startsWith(`${site.replace(/\/$/, "")}/`));
  return text.split(/(https?:\/\/\S+)/).map((part) => (/^https?:/.test(part) && known(part) ? element("a", { href: part }, part) : part));
}

function incidents({ incidents: list, at: now, dagster_url, monitor_url }) {
  if (!list?.length) return null;
  const sites = [dagster_url, monitor_url];
  const named = (one) => {
    // One that a monitor at another address has opened may name that one: no link then.
    const link = linked(one.link, sites).find((part) => part instanceof Element);
    link?.replaceChildren(one.name);
    return link ?? one.name;
  };
  // An example is a key, a reason and the address of the key's page.
  const example = (text) => {
    const parts = linked(text, sites);
    const found = parts[1] instanceof Element && parts[0].match(/^(.*?~[a-z2-7]{10,}|\S+?)(:?\s.*)$/s);
    if (!found) return parts;
    parts[1].replaceChildren(found[1]);
    return [parts[1], found[2]];
  };
  const tone = { critical: "failed", warning: "quarantined", info: "superseded" };
  const row = (one) => element("tr", {},
    element("td", { class: "name" }, named(one)),
    element("td", {}, element("span", { class: `state ${tone[one.severity]}` }, one.severity)),
    element("td", { class: "reason" }, [linked(one.summary, sites), ...one.examples.map(example)].map((parts) => element("div", {}, ...parts))),
    element("td", {}, one.owner ?? ""),
    element("td", { class: "number" }, since(one.since, now)));
  return element("table", { class: "failures" },
    element("caption", { class: "hidden-text" }, "Open incidents, newest first"),
    element("thead", {}, element("tr", {}, ["Incident", "Severity", "What", "Owner", "For"].map((head, i) => element("th", i === 4 ? { scope: "col", class: "number" } : { scope: "col" }, head)))),
    element("tbody", {}, list.map(row)));
}

function problems(list) {
  return list.length ? element("ul", {}, list.map((text) => element("li", {}, text))) : null;
}

function failures(list, now) {
  if (!list) return away("The warehouse");
  if (!list.length) return empty("Nothing has failed, and nothing is in quarantine.");
  const row = (one) => element("tr", {},
    element("td", { class: "name" }, one.page ? element("a", { href: one.page }, one.key) : one.key),
    element("td", {}, element("span", { class: `state ${one.state}` }, `${KINDS[one.kind]} ${one.state}`)),
    element("td", { class: "reason" }, one.reason || "no reason on record"),
    element("td", {}, one.run_url ? element("a", { href: one.run_url }, "run") : ""),
    element("td", { class: "number" }, since(one.at, now)));
  return element("table", { class: "failures" },
    element("caption", { class: "hidden-text" }, "Last failures, newest first"),
    element("thead", {}, element("tr", {}, ["Which", "What", "Why", "Run", "Ago"].map((head, i) => element("th", i === 4 ? { scope: "col", class: "number" } : { scope: "col" }, head)))),
    element("tbody", {}, list.map(row)));
}

function choose(name) {
  chosen = name;
  localStorage.setItem("window", name);
  for (const button of document.querySelectorAll("[data-window]")) button.setAttribute("aria-pressed", String(button.dataset.window === name));
}

for (const button of document.querySelectorAll("[data-window]")) {
  button.addEventListener("click", () => { choose(button.dataset.window); refresh(); });
}
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
setInterval(showLiveness, 1_000);
choose(document.querySelector(`[data-window="${chosen}"]`) ? chosen : "1h");
// What the page came with is drawn before it is first shown: nothing moves when the next answer comes.
receive(JSON.parse(find("first").textContent));
refresh();
