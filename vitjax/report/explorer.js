"use strict";
// The token explorer: one image at a time, its arrays unpacked when it is opened.
(() => {
  const byId = (name) => document.getElementById(`explorer-${name}`);
  const data = JSON.parse(byId("data").textContent);
  const QUANTITIES = {
    identifiability: { title: "identifiability of the label", needs: ["rank"] },
    probability: { title: "probability of the token's top class", needs: ["classes"] },
    attention: { title: "attention weight", needs: ["attention"], perHead: true },
    relevancy: {
      title: "relevancy for the label", needs: ["relevancy"], perHead: true, signed: true,
    },
    gap: {
      title: "relevancy minus attention", needs: ["relevancy", "attention"],
      perHead: true, signed: true,
    },
  };
  const CELL = 24;
  const state = {
    run: data.runs[0], image: null, arrays: {}, quantity: null, layer: 0, head: null,
    token: 0, pinned: false, requests: 0,
  };
  const prefix = () => state.run.prefix.length;
  const patches = () => state.run.grid[0] * state.run.grid[1];
  const tokens = () => prefix() + patches();
  const range = (length) => [...Array(length).keys()];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const exponential = (value, digits) => value.toExponential(digits).replaceAll("-", "−");
  const rowAndColumn = (patch) => {
    const columns = state.run.grid[1];
    return [Math.floor(patch / columns), patch % columns];
  };
  const tokenAt = (row, column) => {
    const [rows, columns] = state.run.grid;
    return prefix() + clamp(row, 0, rows - 1) * columns + clamp(column, 0, columns - 1);
  };

  function element(tag, text, attributes = {}) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  function setOptions(name, pairs) {
    const options = pairs.map(([value, text]) => element("option", text, { value }));
    byId(name).replaceChildren(...options);
  }

  function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream();
    return new Response(stream.pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  }

  async function load(run, image) {
    const pack = JSON.parse(byId(`${run.number}-${image.index}`).textContent);
    const arrays = {};
    for (const [name, { type, shape, bytes }] of Object.entries(pack.arrays)) {
      arrays[name] = new globalThis[type](await inflate(bytes));
      arrays[name].top = shape[2];
    }
    return { url: pack.url, arrays };
  }

  function rankOf(layer, token) {
    const rank = state.arrays.rank?.[layer * tokens() + token] ?? -1;
    return rank < 0 ? NaN : rank;
  }

  const identifiability = (rank) => 1 - rank / state.run.classes.length;

  function topClasses(layer, token) {
    const { classes, probabilities } = state.arrays;
    if (!classes) return [];
    const start = (layer * tokens() + token) * classes.top;
    return range(classes.top).map((place) => ({
      number: classes[start + place],
      name: state.run.classes[classes[start + place]],
      probability: probabilities[start + place] / 255,
    }));
  }

  function stored(name, layer, head) {
    const start = layer * state.run.heads + head;
    const scale = state.arrays[`${name}_scale`][start];
    const steps = state.arrays[name].subarray(start * patches(), (start + 1) * patches());
    return Float32Array.from(steps, (step) => step * scale);
  }

  function shares(values) {
    const total = values.reduce((sum, value) => sum + value, 0);
    return values.map((value) => (total > 0 ? value / total : 0));
  }

  function headMap(quantity, layer, head) {
    if (quantity !== "gap") return stored(quantity, layer, head);
    const relevancy = shares(stored("relevancy", layer, head).map((v) => Math.max(v, 0)));
    const attention = shares(stored("attention", layer, head));
    return relevancy.map((value, patch) => value - attention[patch]);
  }

  function mapOf(quantity, layer, head) {
    if (QUANTITIES[quantity].perHead) {
      const heads = head === null ? range(state.run.heads) : [head];
      const count = quantity === "attention" ? heads.length : 1;
      const maps = heads.map((one) => headMap(quantity, layer, one));
      return maps[0].map((_, patch) => maps.reduce((sum, map) => sum + map[patch], 0) / count);
    }
    return range(patches()).map((patch) => {
      const token = prefix() + patch;
      return quantity === "identifiability"
        ? identifiability(rankOf(layer, token)) : topClasses(layer, token)[0].probability;
    });
  }

  const rampOf = (quantity) => data.colors[QUANTITIES[quantity].signed ? "RdBu_r" : "viridis"];
  const colorAt = (ramp, place) => `#${ramp.slice(6 * place, 6 * place + 6)}`;

  // Paints a map; returns its largest magnitude, or 1 where the scale is [0, 1].
  function paint(canvas, quantity, layer, head, cell) {
    const [rows, columns] = state.run.grid;
    const { signed, perHead } = QUANTITIES[quantity];
    const values = mapOf(quantity, layer, head);
    const largest = values.reduce((most, v) => Math.max(most, Math.abs(v) || 0), 0);
    const scale = perHead ? largest : 1;
    canvas.width = columns * cell;
    canvas.height = rows * cell;
    const pen = canvas.getContext("2d");
    values.forEach((value, patch) => {
      const share = scale ? value / scale : 0;
      const place = Math.round(255 * (signed ? 0.5 + share / 2 : share));
      const [y, x] = rowAndColumn(patch).map((n) => n * cell);
      pen.fillStyle = Number.isNaN(place) ? "#808080" : colorAt(rampOf(quantity), place);
      pen.fillRect(x, y, cell, cell);
      if (quantity === "identifiability" && rankOf(layer, prefix() + patch) === 0) {
        pen.fillStyle = "#0a0a0e";
        pen.beginPath();
        pen.arc(x + cell / 2, y + cell / 2, 0.22 * cell, 0, 7);
        pen.fill();
      }
    });
    return scale;
  }

  function drawMaskBorder(pen, cell) {
    const columns = state.run.grid[1];
    const on = (patch) => state.arrays.on_object[patch] === 1;
    const border = new Path2D();
    for (const patch of range(patches())) {
      const [y, x] = rowAndColumn(patch).map((n) => n * cell);
      if ((patch + 1) % columns && on(patch) !== on(patch + 1)) {
        border.rect(x + cell, y, 0, cell);
      }
      if (patch + columns < patches() && on(patch) !== on(patch + columns)) {
        border.rect(x, y + cell, cell, 0);
      }
    }
    pen.lineJoin = "round"; // edges meet at corners
    for (const [width, color] of [[4, "#000"], [2, "#fff"]]) {
      pen.strokeStyle = color;
      pen.lineWidth = width;
      pen.stroke(border);
    }
  }

  function drawMap() {
    const canvas = byId("map");
    const { layer, quantity, head } = state;
    byId("scale").hidden = canvas.hidden = !quantity;
    if (!quantity) return;
    const { signed, perHead } = QUANTITIES[quantity];
    const scale = paint(canvas, quantity, layer, head, CELL);
    if (state.arrays.on_object) drawMaskBorder(canvas.getContext("2d"), CELL);
    canvas.style.opacity = byId("opacity").value / 100;
    const most = perHead ? exponential(scale, 1) : "1";
    byId("low").textContent = signed ? `−${most}` : "0";
    byId("high").textContent = `${most} ${titleOf(quantity)}`;
    const stops = range(11).map((n) => colorAt(rampOf(quantity), Math.round(25.5 * n)));
    byId("ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  }

  function drawCursor() {
    const [rows, columns] = state.run.grid;
    const cursor = byId("cursor");
    const [row, column] = rowAndColumn(state.token - prefix());
    cursor.hidden = row < 0;
    cursor.classList.toggle("pinned", state.pinned);
    cursor.style.inset = `${(100 * row) / rows}% auto auto ${(100 * column) / columns}%`;
    cursor.style.width = `${100 / columns}%`;
    cursor.style.height = `${100 / rows}%`;
    for (const button of byId("prefix").children) {
      button.setAttribute("aria-pressed", String(Number(button.value) === state.token));
    }
  }

  // A row of small maps. Buttons are reused, so that the keyboard's focus stays.
  function drawStrip(name, count, word, selected, draw, select) {
    const strip = byId(name);
    while (strip.children.length > count) strip.lastChild.remove();
    while (strip.children.length < count) {
      const number = strip.children.length;
      const title = `${word} ${number}`;
      const button = element("button", undefined, { type: "button", "aria-label": title });
      button.append(element("canvas"), element("span", title));
      button.addEventListener("click", () => select(number));
      strip.append(button);
    }
    [...strip.children].forEach((button, number) => {
      button.setAttribute("aria-pressed", String(number === selected));
      draw(button.firstChild, number);
    });
  }

  function drawStrips() {
    const { run, layer, head, quantity } = state;
    drawStrip("blocks", quantity ? run.depth : 0, "block", layer,
      (canvas, number) => paint(canvas, quantity, number, head, 6),
      (number) => update({ layer: number }));
    const perHead = Boolean(quantity && QUANTITIES[quantity].perHead);
    drawStrip("heads", perHead ? run.heads : 0, "head", head,
      (canvas, number) => paint(canvas, quantity, layer, number, 6),
      (number) => update({ head: number === state.head ? null : number }));
    byId("heads-title").hidden = !perHead;
    byId("heads-title").textContent = `Heads of block ${layer}`;
    byId("head").disabled = !perHead;
  }

  // Without a label, relevancy is that for the prediction.
  const titleOf = (quantity) => QUANTITIES[quantity].title.replace(
    "for the label", state.image.label < 0 ? "for the prediction" : "for the label");

  function tokenName(token) {
    if (token < prefix()) return state.run.prefix[token];
    const [row, column] = rowAndColumn(token - prefix());
    return `image token, row ${row}, column ${column}`;
  }

  function valueLine(token) {
    const { arrays, layer, head, quantity } = state;
    const patch = token - prefix();
    const parts = [];
    if (arrays.rank) {
      const rank = rankOf(layer, token);
      parts.push(Number.isNaN(rank) ? "absent"
        : `rank of the label ${rank}, identifiability ${identifiability(rank).toFixed(3)}`);
    }
    if (patch >= 0 && arrays.on_object && arrays.on_object[patch] >= 0) {
      parts.push(arrays.on_object[patch] ? "on the object" : "context");
    }
    if (patch >= 0 && quantity && QUANTITIES[quantity].perHead) {
      const value = mapOf(quantity, layer, head)[patch];
      parts.push(`${titleOf(quantity)} ${exponential(value, 2)}`);
    }
    return parts.join("; ");
  }

  function drawToken() {
    const { token, layer, run, arrays } = state;
    byId("token").textContent = `${tokenName(token)}, after block ${layer}`;
    byId("values").textContent = valueLine(token);
    byId("classes").replaceChildren(...topClasses(layer, token).map((top) => {
      const isLabel = top.number === state.image.label;
      const row = element("li", undefined, { class: isLabel ? "label" : "" });
      const bar = element("i");
      bar.style.width = `${100 * top.probability}%`;
      row.append(element("span", top.name, { title: top.name }),
        element("b", top.probability.toFixed(2)), bar);
      return row;
    }));
    byId("depth").replaceChildren(...[null, ...range(run.depth)].map((block) => {
      const row = element("tr", undefined, { class: block === layer ? "current" : "" });
      const add = (title, value, name) => row.append(block === null
        ? element("th", title, { class: name })
        : element("td", value, { class: name, title: value }));
      add("block", block, "n");
      const [top] = topClasses(block ?? 0, token);
      if (top) add("top class", top.name, "");
      if (top) add("probability", top.probability.toFixed(2), "n");
      const rank = rankOf(block, token);
      if (arrays.rank) add("rank", Number.isNaN(rank) ? "–" : rank, "n");
      return row;
    }));
    drawCursor();
  }

  function drawAll() {
    byId("quantity").value = state.quantity;
    byId("block").value = state.layer;
    byId("block-number").textContent = state.layer;
    byId("head").value = state.head === null ? "all" : state.head;
    drawMap();
    drawStrips();
    drawToken();
  }

  function update(changes) {
    Object.assign(state, changes);
    drawAll();
  }

  function setToken(token, pinned) {
    Object.assign(state, { token, pinned });
    drawToken();
  }

  function listedImages() {
    const filter = byId("filter").value;
    return state.run.images.filter(({ label, prediction }) =>
      filter === "all" || (label >= 0 && (label === prediction) === (filter === "right")));
  }

  function describe({ index, name, label, prediction }) {
    const { classes } = state.run;
    const predicted = `predicted ${classes[prediction]}`;
    const truth = label < 0 ? predicted : label === prediction
      ? `${classes[label]}, predicted correctly` : `${classes[label]}, ${predicted}`;
    return [index, name.split("/").at(-1), truth].filter((part) => part !== "").join(" · ");
  }

  function fillImages() {
    const images = listedImages();
    const options = images.map((image) => [image.index, describe(image)]);
    setOptions("image", images.length ? options : [["", "none"]]);
    if (images.includes(state.image)) byId("image").value = state.image.index;
  }

  async function openImage(image, run = state.run) {
    const request = (state.requests += 1);
    const { url, arrays } = await load(run, image);
    if (request !== state.requests) return; // another one was opened meanwhile
    Object.assign(state, { image, arrays, pinned: false });
    if (run !== state.run || !byId("image").options.length) openRun(run);
    byId("picture").src = url;
    byId("picture").alt = `image ${image.index} of the data set, as the model saw it`;
    byId("image").value = image.index;
    byId("about").textContent = describe(image);
    const available = Object.keys(QUANTITIES).filter((name) =>
      QUANTITIES[name].needs.every((need) => need in arrays));
    if (!available.includes(state.quantity)) state.quantity = available[0] ?? null;
    setOptions("quantity", available.map((name) => [name, titleOf(name)]));
    byId("note").hidden = !available.some((name) => QUANTITIES[name].perHead);
    state.token = Math.min(state.token, tokens() - 1);
    drawAll();
    try {
      history.replaceState(null, "", `#image-${run.number}-${image.index}`);
    } catch { /* a page within another has no address of its own */ }
  }

  function openRun(run) {
    Object.assign(state, { run, layer: run.depth - 1, head: null });
    byId("run").value = run.number;
    byId("block").max = run.depth - 1;
    setOptions("head", [["all", "all"], ...range(run.heads).map((n) => [n, n])]);
    byId("prefix").replaceChildren(...run.prefix.map((name, token) => {
      const button = element("button", name, { type: "button", value: token });
      button.addEventListener("click", () => setToken(token, true));
      return button;
    }));
    byId("picture").classList.toggle("small", run.pixelated);
    byId("stage").style.aspectRatio = `${run.grid[1]} / ${run.grid[0]}`;
    if (!listedImages().includes(state.image)) byId("filter").value = "all";
    fillImages();
    byId("row").textContent = {
      cls: "[CLS], from which the class is read",
      mean: "the image tokens, averaged over their rows, as the class is read from their mean",
      map: "all tokens, averaged over their rows by the weight that the head gives them",
      cls_mean: "[CLS] and the mean of the image tokens, from which the class is read",
    }[run.pool];
  }

  function step(by) {
    const images = listedImages();
    if (!images.length) return;
    const place = images.findIndex(({ index }) => index === state.image?.index);
    openImage(images[(place + by + images.length) % images.length]);
  }

  function openHash() {
    const [, number, index] = /^#image-(\d+)-(\d+)$/.exec(location.hash) ?? [];
    const run = data.runs.find((one) => one.number === Number(number));
    const image = run?.images.find((one) => one.index === Number(index));
    if (!image) return false;
    byId("filter").value = "all";
    openImage(image, run);
    return true;
  }

  function onPointer(event) {
    const box = byId("stage").getBoundingClientRect();
    const [rows, columns] = state.run.grid;
    const x = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const y = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const token = tokenAt(y, x);
    if (event.type === "click") setToken(token, !(state.pinned && token === state.token));
    else if (!state.pinned && token !== state.token) setToken(token, false);
  }

  // The next token on the grid; from [CLS] and registers, its first.
  function neighbor(down, right) {
    const [row, column] = rowAndColumn(state.token - prefix());
    return row < 0 ? prefix() : tokenAt(row + down, column + right);
  }

  function onKey(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key in moves) {
      setToken(neighbor(...moves[event.key]), true);
    } else if (event.key === "[" || event.key === "]") {
      const layer = state.layer + (event.key === "]" ? 1 : -1);
      update({ layer: clamp(layer, 0, state.run.depth - 1) });
    } else return;
    event.preventDefault();
  }

  const on = (name, type, handle) => byId(name).addEventListener(type, handle);
  setOptions("run", data.runs.map(({ number, name }) => [number, name]));
  byId("run").closest("label").hidden = data.runs.length === 1;
  on("run", "change", ({ target }) => {
    const run = data.runs.find(({ number }) => number === Number(target.value));
    const same = run.data === state.run.data
      && run.images.find(({ index }) => index === state.image.index);
    openImage(same || run.images[0], run);
  });
  on("image", "change", ({ target }) => openImage(
    state.run.images.find(({ index }) => index === Number(target.value))));
  on("filter", "change", () => {
    fillImages();
    if (!listedImages().includes(state.image)) step(1);
  });
  on("previous", "click", () => step(-1));
  on("next", "click", () => step(1));
  on("quantity", "change", ({ target }) => update({ quantity: target.value }));
  on("head", "change", ({ target }) =>
    update({ head: target.value === "all" ? null : Number(target.value) }));
  on("block", "input", ({ target }) => update({ layer: Number(target.value) }));
  on("opacity", "input", drawMap);
  on("stage", "pointermove", onPointer);
  on("stage", "click", onPointer);
  on("stage", "keydown", onKey);
  window.addEventListener("hashchange", openHash);

  if (!("DecompressionStream" in window)) {
    byId("about").textContent = "The explorer needs a browser of 2023 or later.";
  } else {
    byId("body").hidden = false;
    if (openHash()) byId("explorer").scrollIntoView();
    else openImage(state.run.images[0]);
  }
})();
