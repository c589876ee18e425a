// Elements and charts, built from nodes: no text from outside is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
const exact = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** A number for people: exact as long as it is short. */
export const count = (value) => (Math.abs(value) < 10_000 ? exact.format(value) : short.format(value));

// A stranger's text may reorder a line or hide a part of it: such characters are shown as escapes, as on all pages.
// The zero-width space of an alert keeps chat programs from seeing a mention.
const legible = (text) => text.replaceAll("\u200b", "").replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`);

/** An element with attributes and children; children are nodes or text, null ones are left out. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    made.setAttribute(key, value === true ? "" : key === "title" ? legible(value) : value);
  }
  const shown = children.flat().filter((child) => child !== null && child !== undefined && child !== false);
  made.append(...shown.map((child) => (typeof child === "string" ? legible(child) : child)));
  return made;
}

function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The smallest of 1, 2, 5, 10, 20, ... that is not below. */
function roundUp(value) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value);
}

/** A small line of values, from the oldest to the newest, from 0 up. */
export function sparkline(values, label) {
  if (values.length < 2) return null;
  const width = 120, height = 24, top = Math.max(...values, 1);
  const points = values.map((value, i) => `${(i * width) / (values.length - 1)},${height - 1 - (value / top) * (height - 2)}`);
  return shape("svg", { class: "sparkline", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label}: ${values.join(", ")}` },
    shape("polyline", { points: points.join(" ") }));
}

/** A time to the second in UTC, as every page and command writes it. */
export const timeText = (moment) => `${new Date(moment).toISOString().slice(0, 19).replace("T", " ")}Z`;

function moment(seconds, stepMinutes) {
  const when = new Date(seconds * 1000);
  const time = `${timeText(when).slice(11, 16)}Z`;
  return stepMinutes < 60 ? time : `${when.toLocaleDateString("en", { weekday: "short", timeZone: "UTC" })} ${time}`;
}

/**
 * Columns over time, stacked.
 * series: [{ label, tone, values }], all as long as starts. Every number is also in a table below.
 */
export function columns({ title, starts, stepMinutes, series, open }) {
  const sums = starts.map((_, i) => series.reduce((sum, one) => sum + one.values[i], 0));
  const top = roundUp(Math.max(...sums, 1));
  const width = 760, height = 190, left = 44, bottom = 20, above = 8;
  const step = (width - left) / starts.length, scale = (height - bottom - above) / top;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": described(title, starts, stepMinutes, series) });
  for (const share of [0, 0.5, 1]) {
    const y = height - bottom - top * share * scale;
    svg.append(shape("line", { class: "axis", x1: left, x2: width, y1: y, y2: y }));
  }
  const marks = starts.map((_, i) => {
    const mark = shape("rect", { class: "here", x: left + i * step, y: above, width: step, height: height - bottom - above });
    let y = height - bottom;
    for (const { tone, values } of series) {
      const tall = values[i] * scale;
      if (!tall) continue;
      y -= tall;
      svg.append(shape("rect", { class: tone, x: left + i * step + step * 0.12, y, width: step * 0.76, height: Math.max(tall, 1) }));
    }
    return mark;
  });
  svg.append(...marks);
  const chart = element("div", { class: "chart" }, svg);
  chart.append(...labels(starts, stepMinutes, top, { width, height, left, bottom, above, scale }));
  attachTip(chart, svg, marks, (i) => tipText(moment(starts[i], stepMinutes), series, i), { width, left, step });
  return [legend(series), chart, tableOf(title, starts, stepMinutes, series, open)];
}

// Text in a stretched drawing would be stretched as well: the labels lie over it.
function labels(starts, stepMinutes, top, { width, height, left, bottom, above, scale }) {
  const made = [];
  for (const share of [0, 0.5, 1]) {
    if (top * share % 1) continue;
    const label = element("span", { class: "tick-y", "aria-hidden": "true" }, count(top * share));
    label.style.top = `${height - bottom - top * share * scale}px`;
    label.style.width = `${(left / width) * 100}%`;
    made.push(label);
  }
  const every = Math.ceil(starts.length / 5);
  starts.forEach((start, i) => {
    if (i % every) return;
    const label = element("span", { class: "tick-x", "aria-hidden": "true" }, moment(start, stepMinutes));
    label.style.left = `${((left + (i * (width - left)) / starts.length) / width) * 100}%`;
    made.push(label);
  });
  return made;
}

function described(title, starts, stepMinutes, series) {
  const totals = series.map(({ label, values }) => `${count(values.reduce((a, b) => a + b, 0))} ${label}`);
  return `${title} since ${moment(starts[0], stepMinutes)}: ${totals.join(", ") || "none"}. The table below has every number.`;
}

function legend(series) {
  return element("ul", { class: "legend" }, series.map(({ label, tone, values }) =>
    element("li", { class: tone }, element("span", {}, `${label} `, element("b", {}, count(values.reduce((a, b) => a + b, 0)))))));
}

function tipText(when, series, i) {
  const lines = series.filter(({ values }) => values[i]).map(({ label, values }) => `${exact.format(values[i])} ${label}`);
  return [when, ...(lines.length ? lines : ["nothing"])].join("\n");
}

function attachTip(chart, svg, marks, text, { width, left, step }) {
  const tip = element("div", { class: "tip", hidden: true, "aria-hidden": "true" });
  chart.append(tip);
  let on = null;
  const leave = () => { on?.classList.remove("on"); on = null; tip.hidden = true; };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const i = Math.floor((((event.clientX - box.left) / box.width) * width - left) / step);
    if (!marks[i]) return leave();
    on?.classList.remove("on");
    on = marks[i];
    on.classList.add("on");
    tip.textContent = text(i);
    tip.hidden = false;
    const x = ((left + (i + 0.5) * step) / width) * box.width;
    tip.style.left = `${Math.max(0, Math.min(x + 10, box.width - tip.offsetWidth))}px`;
    if (x + 10 + tip.offsetWidth > box.width) tip.style.left = `${Math.max(0, x - 10 - tip.offsetWidth)}px`;
  });
}

function tableOf(title, starts, stepMinutes, series, open) {
  const details = element("details", { open }, element("summary", {}, "As a table"));
  const fill = () => {
    if (!details.open || details.querySelector("table")) return;
    const rows = starts.map((start, i) => [moment(start, stepMinutes), ...series.map(({ values }) => exact.format(values[i]))]).reverse();
    details.append(element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
      table(["From", ...series.map(({ label }) => label)], rows, title)));
  };
  details.addEventListener("toggle", fill);
  fill();
  return details;
}

/** A table whose first column is text and whose others are numbers. */
export function table(heads, rows, caption) {
  const kind = (i) => (i ? { class: "number" } : {});
  return element("table", {},
    element("caption", { class: "hidden-text" }, caption),
    element("thead", {}, element("tr", {}, heads.map((head, i) => element("th", { scope: "col", ...kind(i) }, head)))),
    element("tbody", {}, rows.map((cells) => element("tr", {}, cells.map((cell, i) => element("td", i ? kind(i) : { class: "name" }, cell))))));
}

/** A list of bars. entries: [{ label, text, parts: [[tone, value]] }]; `most` is the length of a full one. */
export function bars(entries, most) {
  return element("ul", { class: "bars" }, entries.map(({ label, text, parts }) => {
    const track = element("span", { class: "track", "aria-hidden": "true" });
    for (const [tone, value] of parts) {
      if (!value) continue;
      const part = element("i", { class: tone });
      part.style.width = `${(100 * value) / Math.max(most, 1)}%`;
      track.append(part);
    }
    return element("li", {}, element("span", { class: "label" }, element("span", {}, label), element("b", {}, text)), track);
  }));
}
