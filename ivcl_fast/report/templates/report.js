// @ts-check
"use strict";

/**
 * @typedef {{name: string, note: string, src: string, side: number, columns: number,
 *   tiles: (number | null)[], over: boolean, legend: [string, string][]}} Layer
 *   Tiles on one picture, one for each frame; `over`: over the gray frame.
 * @typedef {{n: number, belief: number[][], true: number[] | null, hidden: boolean[] | null,
 *   counts: [string, number, number][]}} Floor After each frame; how often the belief is right.
 * @typedef {{name: string, titles: string[], truth: string, answer: string | null,
 *   right: boolean | null, end: string | null, confidence: number | null, label: number | null,
 *   guess: number | null, problem: string | null, layers: Layer[], floor: Floor | null,
 *   probabilities: [string, number | null, boolean][], other?: Clip}} Clip
 *   `other`: the same clip in the second run.
 * @typedef {{title: string, chance: number | null,
 *   lines: Record<string, [number, number | null][]>}} Panel
 * @typedef {{n: number | null, names: string[], classes: number[],
 *   pairs: [number, number, number][]}} Confusion
 *   Pairs of a true class and an answer, with the number of clips.
 */

/** @type {{curves: Panel[], clips: Clip[], confusion: Confusion | null, live: boolean}} */
const data = JSON.parse(byId("data").textContent || "{}");
const SVG = "http://www.w3.org/2000/svg";

/** @type {(id: string) => any} */
function byId(id) {
  return document.getElementById(id);
}

/** @type {(parent: Element, tag: string, attributes?: object, text?: string) => any} */
function add(parent, tag, attributes = {}, text = "") {
  const inSvg = tag === "svg" || parent.namespaceURI === SVG;
  const element = inSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  Object.entries(attributes).forEach(([name, of]) => element.setAttribute(name, String(of)));
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

/** @type {(clip: Clip) => {kind: string, mark: string}} */
function verdict({ right }) {
  if (right === null) return { kind: "", mark: "" };
  return right ? { kind: "right", mark: "✓ " } : { kind: "wrong", mark: "✗ " };
}

/** @type {(share: number | null) => string} */
function percent(share) {
  if (share === null) return "unknown";
  return share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
}

// --- Table of results ------------------------------------------------------------------------

/** @type {(table: any) => void} A click on a heading sorts by it, the next one in reverse. */
function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const falls = heading.getAttribute("aria-sort") === "descending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", falls ? "ascending" : "descending");
      const text = (/** @type {any} */ row) => row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) =>
        parseFloat(text(a)) - parseFloat(text(b)) || text(a).localeCompare(text(b)));
      table.tBodies[0].append(...(falls ? rows : rows.reverse()));
    });
  });
}

// --- Curves ----------------------------------------------------------------------------------

const STAGES = [...new Set(data.curves.flatMap((panel) => Object.keys(panel.lines)))];
const WIDTH = 360, HEIGHT = 210, LEFT = 52, RIGHT = 12, TOP = 12, BOTTOM = 24;

/** @type {(value: number) => string} */
function short(value) {
  if (Math.abs(value) >= 1000) return `${Number((value / 1000).toPrecision(3))}k`;
  if (value && Math.abs(value) < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

/** @type {(panel: Panel) => void} A panel of curves; the pointer shows the nearest point. */
function drawCurves(panel) {
  const figure = add(byId("curves"), "figure");
  add(figure, "h3", {}, panel.title);
  const svg = add(figure, "svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": panel.title,
  });
  const caption = add(figure, "figcaption");
  const stages = Object.entries(panel.lines).map(([stage, points]) => ({
    stage, color: `stage-${STAGES.indexOf(stage) % 5}`,
    points: /** @type {[number, number][]} */ (points.filter((point) => point[1] !== null)),
  }));
  const all = stages.flatMap((line) => line.points);
  if (!all.length) {
    caption.textContent = "No finite value.";
    return;
  }
  const values = all.map((point) => point[1]);
  if (panel.chance !== null) values.push(panel.chance);
  const most = Math.max(...all.map((point) => point[0]), 1);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) high += Math.abs(high) || 1;
  const x = (/** @type {number} */ clips) => LEFT + (clips / most) * (WIDTH - LEFT - RIGHT);
  const y = (/** @type {number} */ value) =>
    TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const unit = 10 ** Math.floor(Math.log10((high - low) / 4));
  const step = unit * ([1, 2, 5].find((times) => times * unit >= (high - low) / 4) ?? 10);
  for (let number = Math.ceil(low / step); number * step <= high; number++) {
    const value = number * step, at = y(value);
    add(svg, "line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at });
    add(svg, "text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, short(value));
  }
  for (const share of [0, 0.5, 1]) {
    const anchor = share === 1 ? "end" : "middle";
    add(svg, "text", { x: x(share * most), y: HEIGHT - 7, "text-anchor": anchor },
      short(share * most));
  }
  if (panel.chance !== null) {
    const at = y(panel.chance);
    add(svg, "line", { class: "chance", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at });
  }
  for (const line of stages) {
    const points = line.points.map(([clips, value]) => `${x(clips)},${y(value)}`).join(" ");
    add(svg, "polyline", { class: line.color, points });
    if (line.points.length !== 1) continue;
    const [cx, cy] = points.split(",");
    add(svg, "circle", { class: line.color, r: 3, cx, cy, fill: "currentColor" });
  }
  const dot = add(svg, "circle", { r: 4, cx: -9, cy: -9, fill: "currentColor" });
  const legend = () => {
    caption.textContent = "";
    stages.forEach(({ color, stage }) => add(caption, "span", { class: color }, `— ${stage} `));
    const chance = panel.chance === null ? "" : `- - chance ${short(panel.chance)} `;
    caption.append(`${chance}over clips seen`);
  };
  legend();
  svg.addEventListener("pointermove", (/** @type {PointerEvent} */ { clientX, clientY }) => {
    const box = svg.getBoundingClientRect(), scale = WIDTH / box.width;
    const px = (clientX - box.left) * scale, py = (clientY - box.top) * scale;
    let best = Infinity;
    for (const line of stages) {
      for (const [clips, value] of line.points) {
        const distance = Math.hypot(x(clips) - px, y(value) - py);
        if (distance >= best) continue;
        best = distance;
        dot.setAttribute("class", line.color);
        dot.setAttribute("cx", String(x(clips)));
        dot.setAttribute("cy", String(y(value)));
        caption.textContent = `${line.stage}: ${short(value)} after ${clips} clips`;
      }
    }
  });
  svg.addEventListener("pointerleave", () => {
    dot.setAttribute("cx", "-9");
    legend();
  });
}

// --- Pictures of clips -----------------------------------------------------------------------

/** @type {Map<string, HTMLImageElement>} */
const images = new Map();

/** @type {(layer: Layer) => HTMLImageElement} Its picture; everything is drawn again when loaded. */
function imageOf(layer) {
  let image = images.get(layer.src);
  if (!image) {
    image = new Image();
    image.addEventListener("load", draw);
    image.src = layer.src;
    images.set(layer.src, image);
  }
  return image;
}

/** @type {(canvas: HTMLCanvasElement | null, clip: Clip, frame: number, layer?: Layer) => void} */
function drawFrame(canvas, clip, frame, layer = clip.layers[0]) {
  const context = canvas && canvas.getContext("2d");
  if (!context) return;
  const size = canvas.width, tile = layer.tiles[frame];
  const put = (/** @type {Layer} */ of, /** @type {number} */ number) => {
    const image = imageOf(of), { side, columns } = of;
    if (!image.complete || !image.naturalWidth) return;
    const left = (number % columns) * side, top = Math.floor(number / columns) * side;
    context.drawImage(image, left, top, side, side, 0, 0, size, size);
  };
  context.clearRect(0, 0, size, size);
  context.imageSmoothingEnabled = layer.side > 96 && !layer.over;
  if (layer.over || tile === null) put(clip.layers[0], frame);
  if (layer.over) {
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "gray";
    context.fillRect(0, 0, size, size);
    context.globalCompositeOperation = "source-over";
  }
  if (tile !== null) put(layer, tile);
  else {  // not a query frame
    context.fillStyle = "rgba(0, 0, 0, 0.7)";
    context.fillRect(0, 0, size, size);
  }
}

/** @type {(parent: Element, size: number, text: string, clicked: () => void) => HTMLElement} */
function addPicture(parent, size, text, clicked) {
  const button = add(parent, "button", { type: "button", class: "picture" });
  add(button, "canvas", { width: size, height: size });
  if (text) add(button, "span", {}, text);
  button.addEventListener("click", clicked);
  return button;
}

// --- Answers ---------------------------------------------------------------------------------

/**
 * Draw CATER's floor from above, turned as its camera sees it from its starting pose, with the
 * numbers of its columns and rows.
 * @type {(parent: Element, n: number, label: string, look: (cell: number) => object,
 *   hint: (cell: number) => string) => {svg: Element, cells: Element[],
 *   center: (cell: number) => number[], corners: (cell: number, inset?: number) => string}}
 */
function makeFloor(parent, n, label, look, hint) {
  const at = (/** @type {number} */ column, /** @type {number} */ row) =>
    [(column + row) * Math.SQRT1_2, (column - row) * Math.SQRT1_2];
  const center = (/** @type {number} */ cell) =>
    at((cell % n) + 0.5, Math.floor(cell / n) + 0.5);
  const corners = (/** @type {number} */ cell, inset = 0) => {
    const column = cell % n, row = Math.floor(cell / n), a = inset, b = 1 - inset;
    return [[a, a], [b, a], [b, b], [a, b]]
      .map(([dx, dy]) => at(column + dx, row + dy).join(",")).join(" ");
  };
  const half = n * Math.SQRT1_2, margin = 0.6;
  const svg = add(parent, "svg", {
    viewBox: [-margin, -half - 0.1, 2 * (half + margin), 2 * half + margin].join(" "),
    role: "img", "aria-label": label,
  });
  const cells = Array.from({ length: n * n }, (_, cell) => {
    const polygon = add(svg, "polygon", { ...look(cell), points: corners(cell) });
    add(polygon, "title", {}, `${cellName(n, cell)}: ${hint(cell)}`);
    return polygon;
  });
  for (let number = 0; number < n; number++) {
    for (const [x, y] of [at(number + 0.5, -0.4), at(n + 0.4, number + 0.5)]) {
      add(svg, "text", { class: "axis", x, y: y + 0.14 }, String(number));
    }
  }
  return { svg, cells, center, corners };
}

/** @type {(n: number, cell: number) => string} */
function cellName(n, cell) {
  return `cell ${cell} (column ${cell % n}, row ${Math.floor(cell / n)})`;
}

/** @type {(parent: Element, floor: Floor, frame: number) => void} */
function drawBelief(parent, floor, frame) {
  const { n } = floor, belief = floor.belief[frame], top = Math.max(...belief, 1e-9);
  const guess = belief.indexOf(Math.max(...belief));
  const { svg, center, corners } = makeFloor(parent, n, "belief on the floor",
    (cell) => ({ class: "cell", "fill-opacity": 0.9 * belief[cell] / top }),
    (cell) => percent(belief[cell]));
  if (floor.true) {
    const path = floor.true.slice(0, frame + 1).map((cell) => center(cell).join(","));
    path.forEach((point, at) => add(svg, "polyline", {
      class: floor.hidden && floor.hidden[at] ? "path hidden" : "path",
      points: `${path[Math.max(at - 1, 0)]} ${point}`,
    }));
    add(svg, "polygon", { class: "true", points: corners(floor.true[frame], 0.06) });
  }
  const [x, y] = center(guess), r = 0.25;
  add(svg, "path", {
    class: "guess", d: `M${x - r} ${y - r}L${x + r} ${y + r}M${x - r} ${y + r}L${x + r} ${y - r}`,
  });
  const truth = floor.true ? ` True: ${cellName(n, floor.true[frame])}` : "";
  const hidden = floor.hidden ? (floor.hidden[frame] ? ", hidden." : ", visible.") : "";
  const share = percent(belief[guess]);
  add(parent, "p", {}, `After this frame: ${cellName(n, guess)} with ${share}.${truth}${hidden}`);
  add(parent, "p", { class: "hint" }, "Stronger blue is likelier; the cross marks the likeliest cell"
    + (floor.true ? ", the outline the true one and the line its path, dashed while hidden" : "")
    + ". Left edge: columns, right edge: rows.");
  if (!floor.counts.length) return;
  const counts = floor.counts.map(([end, right, all]) =>
    `in ${right} of ${all} frames with the snitch ${end}`);
  add(parent, "p", {}, `The belief is right ${counts.join(" and ")}.`);
  add(parent, "p", { class: "hint" }, "Marks under the frame: tall and green where it is right, with a "
    + "dot when the snitch moves to another cell, underlined while it is hidden.");
}

/** @type {(clip: Clip) => void} The panels of a problem, and its questions, which are clips too. */
function drawPanels(clip) {
  const parent = byId("panels");
  parent.textContent = "";
  if (clip.problem === null) return;
  const last = clip.titles.length - 1;
  const make = (/** @type {Clip} */ of, /** @type {number} */ frame, /** @type {string} */ text,
    /** @type {boolean} */ current, /** @type {() => void} */ chosen) => {
    const button = addPicture(parent, 96, text, chosen);
    button.setAttribute("aria-current", String(current));
    drawFrame(button.querySelector("canvas"), of, frame);
  };
  add(parent, "h3", {}, "What the panels show");
  for (let frame = 0; frame < last; frame++) {
    make(clip, frame, clip.titles[frame], frame === state.frame, () => seek(frame));
  }
  add(parent, "h3", {}, "Questions about them");
  data.clips.forEach((of, number) => {
    if (of.problem !== clip.problem) return;
    make(of, of.titles.length - 1, verdict(of).mark + (of.answer ?? "question"), of === clip,
      () => select(number));
  });
}

/** @type {(parent: Element, clip: Clip, frame: number) => void} */
function drawAnswer(parent, clip, frame) {
  parent.textContent = "";
  if (clip.floor) {
    add(parent, "h3", {}, "Where the model believes the snitch is");
    drawBelief(parent, clip.floor, frame);
  }
  if (clip.answer !== null) {
    add(parent, "h3", {}, "Answer for the whole clip");
    const { kind, mark } = verdict(clip);
    add(parent, "p", { class: kind }, `${clip.answer} ${mark}${kind}`);
    for (const [name, share, isTrue] of clip.probabilities) {
      const bar = add(parent, "div", { class: "bar" });
      add(bar, "span", { title: name, class: isTrue ? "right" : "" },
        name + (isTrue ? " (true)" : ""));
      add(bar, "b", {}, percent(share));
      add(bar, "meter", { min: 0, max: 1, value: share ?? 0, "aria-label": name });
    }
  }
  const named = clip.probabilities.some(([, , isTrue]) => isTrue);
  if (clip.truth && !named) add(parent, "p", {}, `Truth: ${clip.truth}`);
}

/** @type {(parent: Element, clip: Clip) => void} When the belief is right, and the snitch hidden. */
function drawTimeline(parent, { floor, titles }) {
  parent.textContent = "";
  if (!floor || !floor.true) return;
  const { belief, true: cells, hidden } = floor;
  belief.forEach((row, frame) => {
    const right = row.indexOf(Math.max(...row)) === cells[frame] ? "right" : "wrong";
    const end = hidden && hidden[frame] ? "hidden" : "visible";
    const moves = frame && cells[frame] !== cells[frame - 1] ? "moves" : "";
    add(parent, "i", {
      class: `${right} ${end} ${moves}`, title: `${titles[frame]}: ${right}, ${end} ${moves}`,
    }).addEventListener("click", () => seek(frame));
  });
}

// --- Mistakes --------------------------------------------------------------------------------

/** Draw how often the model is wrong: on the floor, or as a matrix of classes. */
function drawConfusion() {
  const { confusion } = data, parent = byId("confusion");
  if (!confusion || !parent) return;
  const { n, names, classes, pairs } = confusion;
  const totals = names.map(() => 0), wrong = names.map(() => 0);
  for (const [label, answer, clips] of pairs) {
    totals[label] += clips;
    if (label !== answer) wrong[label] += clips;
  }
  if (n) {
    const { cells } = makeFloor(parent, n, "where the model is wrong",
      (cell) => ({ class: "mistake", "fill-opacity": wrong[cell] / Math.max(totals[cell], 1) }),
      (cell) => `${wrong[cell]} of ${totals[cell]} clips wrong`);
    cells.forEach((polygon, cell) => polygon.addEventListener("click", () => pick(cell, null)));
    return;
  }
  const table = add(parent, "table"), head = add(table, "tr");
  add(head, "th", {}, "true class ↓ answer →");
  classes.forEach((_, at) => add(head, "th", { scope: "col" }, String(at + 1)));
  classes.forEach((label, at) => {
    const row = add(table, "tr");
    add(row, "th", { scope: "row", title: names[label] }, `${at + 1} ${names[label]}`);
    for (const answer of classes) {
      const pair = pairs.find((pair) => pair[0] === label && pair[1] === answer);
      const clips = pair ? pair[2] : 0, share = clips / Math.max(totals[label], 1);
      const cell = add(row, "td", {
        class: label === answer ? "hit" : "mistake", style: `--share: ${40 * share}%`,
        title: `${names[label]} taken for ${names[answer]}: ${clips} of ${totals[label]} clips`,
      }, clips ? String(clips) : "");
      cell.addEventListener("click", () => pick(label, answer));
    }
  });
}

/** @type {(label: number, answer: number | null) => void} Show the clips of a class, and answer. */
function pick(label, answer) {
  const form = byId("filters");
  for (const name of ["right", "end"]) if (form.elements[name]) form.elements[name].value = "";
  form.elements.label.value = String(label);
  form.elements.guess.value = answer === null ? "" : String(answer);
  filter();
}

/** @type {(label: string, guess: string) => void} How many of all evaluated ones are wrong. */
function describeMistakes(label, guess) {
  const { confusion } = data;
  if (!confusion || (!label && !guess)) return;
  const some = confusion.pairs.filter(([of, answer]) =>
    (!label || of === Number(label)) && (!guess || answer === Number(guess)));
  const all = some.reduce((sum, pair) => sum + pair[2], 0);
  const wrong = some.reduce((sum, pair) => sum + (pair[0] === pair[1] ? 0 : pair[2]), 0);
  byId("chosen").textContent = `${wrong} of ${all} such clips are answered wrongly; the gallery`
    + " shows some of them (another one: visualize RUN --clip NAME).";
}

// --- Player ----------------------------------------------------------------------------------

/** The current view. `order`: the clips that pass the filters, by number. */
const state = {
  clip: 0, frame: 0, layer: 0, timer: 0, order: data.clips.map((_, number) => number),
};
/** @type {HTMLElement[]} */
let thumbnails = [];

/** @type {(clip: Clip) => Clip[]} */
const inRuns = (clip) => clip.other ? [clip, clip.other] : [clip];

/** Draw the chosen clip's frame, its answer, and the same moment of all other clips. */
function draw() {
  const clip = data.clips[state.clip], { name, note, legend } = clip.layers[state.layer];
  inRuns(clip).forEach((of, run) => {
    const layer = of.layers.find((layer) => layer.name === name);
    drawFrame(byId(`frame${run}`), of, state.frame, layer);
    drawAnswer(byId(`answer${run}`), of, state.frame);
  });
  drawPanels(clip);
  byId("frame-title").textContent = clip.titles[state.frame];
  byId("scrubber").value = state.frame;
  byId("note").textContent = note;
  byId("legend").textContent = "";
  for (const [text, color] of legend) {
    add(byId("legend"), "i", { style: `background: ${color}` });
    byId("legend").append(text);
  }
  for (const number of state.order) {
    const other = data.clips[number], last = other.titles.length - 1;
    const frame = Math.round(state.frame / Math.max(clip.titles.length - 1, 1) * last);
    drawFrame(thumbnails[number].querySelector("canvas"), other, frame);
  }
  [...byId("layers").children].forEach((button, at) =>
    drawFrame(button.querySelector("canvas"), clip, state.frame, clip.layers[at]));
}

/** @type {(frame: number) => void} */
function seek(frame) {
  const count = data.clips[state.clip].titles.length;
  state.frame = (frame + count) % count;
  draw();
  if (!state.timer) writeLink();
}

/** Put a link to this clip and frame into the address; inside a notebook there is none. */
function writeLink() {
  if (location.protocol === "about:") return;
  const { name } = data.clips[state.clip];
  const link = new URLSearchParams({ clip: name, frame: String(state.frame + 1) });
  history.replaceState(null, "", `#${link}`);
}

/** Show the clip and frame that the address links to, if the page has them. */
function readLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  const found = data.clips.findIndex((clip) => clip.name === link.get("clip"));
  const number = Math.max(found, 0), frame = Number(link.get("frame")) - 1;
  select(number, data.clips[number].titles[frame] ? frame : undefined);
}

/** @param {number} layer */
function choose(layer) {
  if (layer >= data.clips[state.clip].layers.length) return;
  state.layer = layer;
  [...byId("layers").children].forEach((button, number) =>
    button.setAttribute("aria-checked", String(number === layer)));
  seek(state.frame);
}

/** @type {(number: number, frame?: number) => void} Show a clip, at rest its last frame. */
function select(number, frame) {
  const clip = data.clips[number];
  state.clip = number;
  state.frame = frame ?? (state.timer ? 0 : clip.titles.length - 1);
  thumbnails.forEach((button, other) =>
    button.setAttribute("aria-current", String(other === number)));
  byId("clip-name").textContent = clip.name;
  byId("scrubber").max = clip.titles.length - 1;
  const layers = byId("layers");
  layers.textContent = "";
  clip.layers.forEach((layer, at) => {
    addPicture(layers, 96, layer.name, () => choose(at)).setAttribute("role", "radio");
  });
  inRuns(clip).forEach((of, run) => drawTimeline(byId(`timeline${run}`), of));
  choose(state.layer < clip.layers.length ? state.layer : 0);
}

/** @type {(step: number) => void} Show the next clip that passes the filters, or the one before. */
function leaf(step) {
  const at = state.order.indexOf(state.clip), { length } = state.order;
  if (length) select(state.order[(at + step + length) % length]);
}

/** Show the next frame or, after the last one, the next clip if all are to be played. */
function advance() {
  const { titles } = data.clips[state.clip];
  if (state.frame < titles.length - 1 || !byId("all").checked) seek(state.frame + 1);
  else if (data.live && state.clip === state.order.at(-1)) {  // there may be more clips by now
    writeLink();
    location.reload();
  } else leaf(1);
}

/** Start or stop, at the chosen speed. */
function play() {
  if (state.timer) {
    clearInterval(state.timer);
    state.timer = 0;
    writeLink();
  } else state.timer = setInterval(advance, 1000 / Number(byId("speed").value));
  byId("play").textContent = state.timer ? "Pause" : "Play";
}

/** Show the clips that pass the filters, in the chosen order. */
function filter() {
  const chosen = new FormData(byId("filters"));
  const value = (/** @type {string} */ name) => String(chosen.get(name) ?? "");
  const fits = (/** @type {string} */ name, /** @type {unknown} */ of) =>
    !value(name) || String(of) === value(name);
  const passes = (/** @type {Clip} */ clip) =>
    fits("right", clip.right) && fits("label", clip.label) && fits("guess", clip.guess)
      && (fits("end", clip.end) || (value("end") === "hidden" && clip.end !== "visible"));
  const sign = Number(chosen.get("order"));
  state.order = data.clips.map((_, number) => number).filter((n) => passes(data.clips[n]));
  state.order.sort((a, b) =>
    sign * ((data.clips[a].confidence ?? 0) - (data.clips[b].confidence ?? 0)) || a - b);
  thumbnails.forEach((button, number) => { button.hidden = !state.order.includes(number); });
  byId("thumbnails").append(...state.order.map((number) => thumbnails[number]));
  describeMistakes(value("label"), value("guess"));
  const wrong = state.order.filter((number) => data.clips[number].right === false).length;
  byId("count").textContent = `${state.order.length} of ${data.clips.length} clips`
    + (wrong ? `, ${wrong} wrong` : "");
  if (state.order.length && !state.order.includes(state.clip)) select(state.order[0]);
  else draw();
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const target = /** @type {Element} */ (event.target);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target.matches("select, [type=checkbox]")) return;
  /** @type {Record<string, () => unknown>} */
  const actions = {
    " ": play,
    ArrowLeft: () => seek(state.frame - 1),
    ArrowRight: () => seek(state.frame + 1),
    ArrowUp: () => leaf(-1),
    ArrowDown: () => leaf(1),
  };
  const digit = "123456789".indexOf(event.key);
  if (event.key in actions) actions[event.key]();
  else if (event.key.length === 1 && digit >= 0) choose(digit);
  else return;
  event.preventDefault();
}

/** Make the gallery, and connect its controls. */
function startGallery() {
  if (!data.clips.length) return;
  thumbnails = data.clips.map((clip, number) => {
    const button = addPicture(byId("thumbnails"), 112, "", () => select(number));
    button.title = clip.name;
    const { kind, mark } = verdict(clip);
    const sure = clip.confidence === null ? "" : ` ${percent(clip.confidence)}`;
    add(button, "span", { class: kind }, `${mark}${kind}${sure}`);
    if (clip.end !== null) add(button, "span", {}, clip.end);
    add(button, "span", { class: "name" }, clip.name);
    return button;
  });
  byId("scrubber").addEventListener("input", () => seek(Number(byId("scrubber").value)));
  byId("play").addEventListener("click", play);
  byId("speed").addEventListener("change", () => state.timer && (play(), play()));
  byId("filters").addEventListener("change", filter);
  addEventListener("keydown", onKey);
  addEventListener("hashchange", readLink);
  readLink();
  filter();
  if (!data.live) return;
  play();  // after the clip that an earlier state of this page has played
  select(Math.min(state.clip + (location.hash ? 1 : 0), data.clips.length - 1), 0);
}

document.querySelectorAll(".sortable").forEach(makeSortable);
data.curves.forEach(drawCurves);
drawConfusion();
startGallery();
