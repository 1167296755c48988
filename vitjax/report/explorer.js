"use strict";
// The token explorer: one image at a time, its arrays unpacked when it is opened.
(() => {
  const byId = (name) => document.getElementById(`explorer-${name}`);
  const data = JSON.parse(byId("data").textContent);
  // Without a normalizer, probabilities are sigmoids.
  const probability = (logit, normalizer) => Number.isNaN(normalizer)
    ? 1 / (1 + Math.exp(-logit)) : Math.exp(logit - normalizer);
  // What a map shows: `ofClass` of the chosen class, or `ofHead` by heads, or `of`; in
  // [0, 1] unless `signed` or `scaled`.
  const QUANTITIES = {
    rank: {
      title: "rank of CLASS, log colors", needs: ["ranks"],
      ofClass: (rank) => 1 - Math.log1p(rank) / Math.log(state.run.classes.length),
    },
    identifiability: {
      title: "identifiability of CLASS, linear colors", needs: ["ranks"],
      ofClass: (rank) => identifiability(rank),
    },
    probability: {
      title: "probability of CLASS", needs: ["logits"],
      ofClass: (rank, logit, normalizer) => probability(logit, normalizer),
    },
    logit: {
      title: "class logit of CLASS", needs: ["logits"], signed: true,
      ofClass: (rank, logit) => logit,
    },
    top: {
      title: "probability of the token's top class", needs: ["classes"],
      of: (layer) => ofPatches((token) => topClasses(layer, token)[0].probability),
    },
    between: {
      title: "attention weights of the chosen token, mean over heads",
      needs: ["between"], scaled: true, of: (layer) => attentionFrom(state.token, layer),
    },
    attention: {
      title: "attention weights of ROW, by head", needs: ["attention"], scaled: true,
      ofHead: (layer, head) => stored("attention", layer, head),
    },
    relevancy: {
      title: "relevancy for TARGET", needs: ["relevancy"], signed: true,
      ofHead: (layer, head) => stored("relevancy", layer, head),
    },
    gap: {
      title: "relevancy minus attention", needs: ["relevancy", "attention"], signed: true,
      ofHead: (layer, head) => {
        const relevancy = stored("relevancy", layer, head).map((v) => Math.max(v, 0));
        return minus(shares(relevancy), shares(stored("attention", layer, head)));
      },
    },
  };
  const CELL = 24;
  const BLOCK_MILLISECONDS = 700;
  const state = {
    run: data.runs[0], image: null, arrays: {}, quantity: null, layer: data.opening.layer,
    head: null, token: data.opening.token, pinned: false, requests: 0, timer: null,
    a: null, b: null, view: "a", // classes, null: the default ones; "a", "b" or "minus"
  };
  const prefix = () => state.run.prefix.length;
  const patches = () => state.run.grid[0] * state.run.grid[1];
  const tokens = () => prefix() + patches();
  const range = (length) => [...Array(length).keys()];
  const ofPatches = (of) => range(patches()).map((patch) => of(prefix() + patch));
  const minus = (values, others) => values.map((value, place) => value - others[place]);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const signs = (text) => text.replaceAll("-", "−");
  const exponential = (value, digits) => signs(value.toExponential(digits));
  const rowAndColumn = (patch) => {
    const columns = state.run.grid[1];
    return [Math.floor(patch / columns), patch % columns];
  };
  const tokenAt = (row, column) => {
    const [rows, columns] = state.run.grid;
    return prefix() + clamp(row, 0, rows - 1) * columns + clamp(column, 0, columns - 1);
  };

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // Children of a parent, as many as asked for: reused, so that the focus stays.
  function children(name, count, make) {
    const parent = byId(name);
    while (parent.children.length > count) parent.lastChild.remove();
    while (parent.children.length < count) parent.append(make());
    return [...parent.children];
  }

  function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream();
    return new Response(stream.pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  }

  async function load(run, image) {
    const packed = JSON.parse(byId(`${run.number}-${image.index}`).textContent);
    const arrays = {};
    for (const [name, { type, bytes }] of Object.entries(packed)) {
      arrays[name] = new globalThis[type](await inflate(bytes));
    }
    if (arrays.chosen) arrays.chosen = [...arrays.chosen];
    else if (arrays.rank) Object.assign(arrays, { chosen: [image.label], ranks: arrays.rank });
    return arrays;
  }

  const chosen = () => state.arrays.chosen ?? [];
  const classA = () => (chosen().includes(state.a) ? state.a : chosen()[0]);
  const classB = () => {
    const others = chosen().filter((number) => number !== classA());
    return others.includes(state.b) ? state.b : others[0];
  };
  // Namesakes are told apart by their numbers.
  const className = (number) => {
    const { classes } = state.run;
    const name = classes[number];
    const alone = classes.indexOf(name) === classes.lastIndexOf(name);
    return alone ? name : `${name} (${number})`;
  };
  function isOf(number, { label, prediction }) {
    if (number === label) return "the label";
    return number === prediction ? "the prediction" : "";
  }
  const classWord = (number) => isOf(number, state.image) || className(number);

  // Rank, logit and log-sum-exp of a class at a token, NaN where not known.
  function readClass(number, layer, token) {
    const { arrays } = state;
    const place = chosen().indexOf(number);
    if (place < 0) return [NaN, NaN, NaN];
    const row = layer * tokens() + token;
    const cell = row * chosen().length + place;
    const rank = arrays.ranks[cell];
    const logit = arrays.logits ? arrays.logits[cell] * arrays.logits_scale[layer] : NaN;
    return [rank < 0 ? NaN : rank, logit, arrays.normalizer?.[row] ?? NaN];
  }

  const identifiability = (rank) => 1 - rank / state.run.classes.length;

  function topClasses(layer, token) {
    const { classes, probabilities } = state.arrays;
    if (!classes) return [];
    const count = classes.length / (state.run.depth * tokens());
    const start = (layer * tokens() + token) * count;
    return range(count).map((place) => ({
      number: classes[start + place],
      name: state.run.classes[classes[start + place]],
      probability: probabilities[start + place] / 255,
    }));
  }

  function readMap(name, row, scale) {
    const steps = state.arrays[name].subarray(row * patches(), (row + 1) * patches());
    return Float32Array.from(steps, (step) => step * scale);
  }

  function stored(name, layer, head) {
    const row = layer * state.run.heads + head;
    return readMap(name, row, state.arrays[`${name}_scale`][row]);
  }

  function attentionFrom(token, layer) {
    const row = layer * tokens() + token;
    return readMap("between", row, state.arrays.between_largest[row] / 63);
  }

  function shares(values) {
    const total = sum(values);
    return values.map((value) => (total > 0 ? value / total : 0));
  }

  function mapOf({ quantity, layer, head, view }) {
    const { ofClass, ofHead, of } = QUANTITIES[quantity];
    if (of) return of(layer);
    if (ofClass) {
      const map = (number) =>
        ofPatches((token) => ofClass(...readClass(number, layer, token)));
      if (view === "minus") return minus(map(classA()), map(classB()));
      return map(view === "a" ? classA() : classB());
    }
    const heads = head === null ? range(state.run.heads) : [head];
    const maps = heads.map((one) => ofHead(layer, one));
    const count = quantity === "attention" ? heads.length : 1;
    return maps[0].map((_, patch) => sum(maps.map((map) => map[patch])) / count);
  }

  function isSigned({ quantity, view }) {
    const { signed, ofClass } = QUANTITIES[quantity];
    return signed || (ofClass && view === "minus");
  }
  const rampOf = (shown) => data.colors[isSigned(shown) ? "RdBu_r" : "viridis"];
  const colorAt = (ramp, place) => `#${ramp.slice(6 * place, 6 * place + 6)}`;

  // Paints a map; returns its largest magnitude, or 1 where the scale is [0, 1].
  function paint(canvas, cell, changes = {}) {
    const shown = { ...state, ...changes };
    const [rows, columns] = state.run.grid;
    const { needs, scaled } = QUANTITIES[shown.quantity];
    const signed = isSigned(shown);
    const ramp = rampOf(shown);
    const values = mapOf(shown);
    const largest = values.reduce((most, v) => Math.max(most, Math.abs(v) || 0), 0);
    const scale = signed || scaled ? largest : 1;
    const dots = needs[0] === "ranks" && !signed;
    const number = shown.view === "b" ? classB() : classA();
    canvas.width = columns * cell;
    canvas.height = rows * cell;
    const pen = canvas.getContext("2d");
    values.forEach((value, patch) => {
      const share = scale ? value / scale : 0;
      const place = Math.round(255 * (signed ? 0.5 + share / 2 : share));
      const [y, x] = rowAndColumn(patch).map((n) => n * cell);
      pen.fillStyle = Number.isNaN(place) ? "#808080" : colorAt(ramp, place);
      pen.fillRect(x, y, cell, cell);
      if (dots && readClass(number, shown.layer, prefix() + patch)[0] === 0) {
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

  // [place in [0, 1], words] along the color bar.
  function ticksOf(scale) {
    if (state.quantity === "rank" && state.view !== "minus") {
      const place = QUANTITIES.rank.ofClass;
      const ranks = [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000];
      const inner = ranks.filter((rank) => place(rank) > 0.09);
      return [...inner, state.run.classes.length - 1].map((rank) => [place(rank), rank]);
    }
    const most = scale === 1 ? "1" : scale > 0.01 && scale < 1000
      ? String(Number(scale.toPrecision(2))) : exponential(scale, 1);
    return isSigned(state) ? [[0, `−${most}`], [0.5, "0"], [1, most]] : [[0, "0"], [1, most]];
  }

  function drawMap() {
    const canvas = byId("map");
    byId("scale").hidden = canvas.hidden = !state.quantity;
    if (!state.quantity) return;
    const scale = paint(canvas, CELL);
    if (state.arrays.on_object) drawMaskBorder(canvas.getContext("2d"), CELL);
    canvas.style.opacity = byId("opacity").value / 100;
    byId("scale-title").textContent = titleOf(state.quantity, state.view);
    byId("ticks").replaceChildren(...ticksOf(scale).map(([place, text]) => {
      const edge = place < 0.03 ? "low" : place > 0.97 ? "high" : "";
      const tick = element("span", { class: edge }, text);
      tick.style.left = `${100 * place}%`;
      return tick;
    }));
    const stops = range(11).map((n) => colorAt(rampOf(state), Math.round(25.5 * n)));
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
    press("prefix", state.token);
  }

  const press = (name, place) => [...byId(name).children].forEach((button, each) =>
    button.setAttribute("aria-pressed", String(each === place)));

  // A row of small maps: [title, what differs from the state].
  function drawStrip(name, maps, selected) {
    const make = () => element("button", { type: "button" }, element("canvas"), element("span"));
    children(name, maps.length, make).forEach((button, place) => {
      const [title, changes] = maps[place];
      button.setAttribute("aria-label", title);
      button.lastChild.textContent = button.title = title;
      paint(button.firstChild, 6, changes);
    });
    press(name, selected);
  }

  const VIEWS = ["a", "b", "minus"];

  function drawStrips() {
    const { run, layer, head, quantity, view } = state;
    const { ofClass, ofHead } = QUANTITIES[quantity] ?? {};
    const blocks = range(quantity ? run.depth : 0);
    drawStrip("blocks", blocks.map((n) => [`block ${n}`, { layer: n }]), layer);
    const heads = range(ofHead ? run.heads : 0);
    drawStrip("heads", heads.map((n) => [`head ${n}`, { head: n }]), head);
    const titles = [`A: ${className(classA())}`, `B: ${className(classB())}`, "A − B"];
    const views = ofClass && chosen().length > 1 ? VIEWS : [];
    drawStrip("views", views.map((each, place) => [titles[place], { view: each }]),
      VIEWS.indexOf(view));
    byId("views-title").hidden = !views.length;
    byId("heads-title").hidden = !ofHead;
    byId("heads-title").textContent = `Heads of block ${layer}: all together, or the one you click`;
  }

  function titleOf(quantity, view = "a") {
    const { image, run } = state;
    const word = { a: classWord(classA()), b: classWord(classB()) };
    word.minus = `${word.a} minus ${word.b}`;
    return QUANTITIES[quantity].title.replace("CLASS", word[view])
      .replace("ROW", run.pool !== "cls" ? "the tokens that are read" : "[CLS]")
      .replace("TARGET", image.label < 0 ? "the prediction" : "the label");
  }

  function tokenName(token) {
    if (token < prefix()) return state.run.prefix[token];
    const [row, column] = rowAndColumn(token - prefix());
    return `image token, row ${row}, column ${column}`;
  }

  function classLine(number, layer, token) {
    const [rank, logit, normalizer] = readClass(number, layer, token);
    if (Number.isNaN(rank)) return "absent";
    const known = [`rank of ${classWord(number)} ${rank}`,
      `identifiability ${identifiability(rank).toFixed(3)}`];
    if (!Number.isNaN(logit)) {
      known.push(`probability ${probability(logit, normalizer).toPrecision(2)}`,
        `logit ${signs(logit.toFixed(2))}`);
    }
    return known.join(", ");
  }

  function valueLine(token) {
    const { arrays, layer, quantity, view } = state;
    const { ofClass, ofHead } = QUANTITIES[quantity] ?? {};
    const patch = token - prefix();
    const parts = chosen().length ? [classLine(classA(), layer, token)] : [];
    if (ofClass && view !== "a") parts.push(classLine(classB(), layer, token));
    if (patch >= 0 && arrays.on_object?.[patch] >= 0) {
      parts.push(arrays.on_object[patch] ? "on the object" : "context");
    }
    if (patch >= 0 && ofHead) {
      parts.push(`${titleOf(quantity)} ${exponential(mapOf(state)[patch], 2)}`);
    }
    if (quantity === "between") {
      const weights = attentionFrom(token, layer);
      if (patch >= 0) parts.push(`attention to itself ${exponential(weights[patch], 1)}`);
      parts.push(`to all image tokens ${sum(weights).toFixed(2)}`);
    }
    return parts.join("; ");
  }

  function drawClasses() {
    const tops = topClasses(state.layer, state.token);
    const make = () => element("li", {},
      element("span", {}, element("button", { type: "button" })), element("b"), element("i"));
    children("classes", tops.length, make).forEach((item, place) => {
      const top = tops[place];
      const [name, share, bar] = item.children;
      item.className = top.number === state.image.label ? "label" : "";
      name.title = name.firstChild.textContent = top.name;
      name.firstChild.disabled = !chosen().includes(top.number);
      share.textContent = top.probability.toFixed(2);
      bar.style.width = `${100 * top.probability}%`;
    });
  }

  // The token after every block: [heading, value, whether it is a number].
  function depthCells(layer, token) {
    const [top] = topClasses(layer, token);
    const [rank] = readClass(classA(), layer, token);
    const heading = chosen().length > 1 ? "rank of A" : "rank";
    return [
      ["block", layer, true],
      ...(top ? [["top class", top.name, false]] : []),
      ...(top ? [["probability", top.probability.toFixed(2), true]] : []),
      ...(chosen().length ? [[heading, Number.isNaN(rank) ? "–" : rank, true]] : []),
    ];
  }

  function drawToken() {
    const { token, layer, run } = state;
    byId("token").textContent = `${tokenName(token)}, after block ${layer}`;
    byId("values").textContent = valueLine(token);
    drawClasses();
    const row = (tag, block, cells) => element("tr", { class: block === layer ? "current" : "" },
      ...cells.map(([text, isNumber]) =>
        element(tag, { class: isNumber ? "n" : "", title: text }, text)));
    byId("depth").replaceChildren(
      row("th", null, depthCells(0, token).map(([heading, , isNumber]) => [heading, isNumber])),
      ...range(run.depth).map((block) => row("td", block,
        depthCells(block, token).map(([, value, isNumber]) => [value, isNumber]))));
    drawCursor();
  }

  function drawPickers() {
    const { run, image } = state;
    const known = chosen().length > 1;
    for (const [name, number] of [["a", classA()], ["b", classB()]]) {
      byId(name).closest("label").hidden = !known;
      byId(name).title = known ? className(number) : "";
      if (document.activeElement !== byId(name)) byId(name).value = byId(name).title;
    }
    byId("names").replaceChildren(...chosen().map((number) =>
      element("option", { value: className(number) }, isOf(number, image))));
    byId("chosen").hidden = !known || chosen().length === run.classes.length;
    const total = run.classes.length.toLocaleString("en-US");
    byId("chosen-number").textContent = `${chosen().length} of ${total}`;
    const names = available();
    children("quantity", names.length, () => element("option")).forEach((option, place) => {
      option.value = names[place];
      option.textContent = titleOf(names[place]);
    });
    byId("quantity").value = state.quantity;
  }

  function drawAll() {
    byId("block").value = state.layer;
    byId("block-number").textContent = state.layer;
    drawPickers();
    drawMap();
    drawStrips();
    drawToken();
  }

  function update(changes) {
    Object.assign(state, changes);
    drawAll();
  }

  function showClass(changes) {
    const { quantity } = state;
    update({ ...changes, quantity: QUANTITIES[quantity].ofClass ? quantity : "rank" });
  }

  function setToken(token, pinned) {
    Object.assign(state, { token, pinned });
    drawToken();
    if (state.quantity === "between") {
      drawMap();
      drawStrips();
    }
  }

  function play(on) {
    const next = () => update({ layer: (state.layer + 1) % state.run.depth });
    clearInterval(state.timer);
    state.timer = on ? setInterval(next, BLOCK_MILLISECONDS) : null;
    byId("token").setAttribute("aria-live", on ? "off" : "polite");
    byId("play").textContent = on ? "❚❚ pause" : "▶ play";
  }

  function openBlock(layer) {
    play(false);
    update({ layer: clamp(layer, 0, state.run.depth - 1) });
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
    byId("thumbs").hidden = state.run.images.length < 2;
    byId("thumbs").replaceChildren(images.length ? "" : "none", ...images.map((image) => {
      const title = describe(image);
      const picture = element("img", { src: image.url, alt: title });
      return element("button", { type: "button", title }, picture);
    }));
    markImage();
  }

  function markImage() {
    const thumbs = byId("thumbs");
    const place = listedImages().indexOf(state.image);
    press("thumbs", place);
    const button = thumbs.children[place];
    if (!button) return;
    const middle = button.offsetLeft + button.offsetWidth / 2;
    thumbs.scrollLeft = middle - thumbs.clientWidth / 2;
  }

  const available = () => Object.keys(QUANTITIES).filter((name) =>
    QUANTITIES[name].needs.every((need) => need in state.arrays));

  // Opens an image, with `wanted` parts of the state.
  async function openImage(image, run = state.run, wanted = {}) {
    const request = (state.requests += 1);
    const arrays = await load(run, image);
    if (request !== state.requests) return; // another one was opened meanwhile
    const isFirst = !state.image;
    Object.assign(state, { image, arrays, pinned: false });
    if (run !== state.run || isFirst) openRun(run);
    byId("picture").src = image.url;
    byId("picture").alt = `image ${image.index} of the data set, as the model saw it`;
    byId("about").textContent = describe(image);
    Object.assign(state, wanted);
    if (!available().includes(state.quantity)) state.quantity = available()[0] ?? null;
    if (chosen().length < 2) state.view = "a";
    state.token = clamp(state.token, 0, tokens() - 1);
    byId("note").hidden = !available().some((name) => QUANTITIES[name].ofHead);
    markImage();
    drawAll();
    if (!isFirst) writeAddress();
  }

  function openRun(run) {
    Object.assign(state, { run, layer: clamp(state.layer, 0, run.depth - 1), head: null });
    byId("run").value = run.number;
    byId("block").max = run.depth - 1;
    byId("prefix").replaceChildren(...run.prefix.map((name) =>
      element("button", { type: "button" }, name)));
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
    const place = images.indexOf(state.image);
    openImage(images[(place + by + images.length) % images.length]);
  }

  // The address holds what is looked at: #image=3&block=5&token=12
  function writeAddress() {
    const { run, image, layer, token, pinned, quantity, head, a, b, view } = state;
    if (!image) return;
    const parts = {
      run: data.runs.length > 1 ? run.number : null, image: image.index, block: layer,
      token: pinned ? token : null, map: quantity, head, a, b, show: view === "a" ? null : view,
    };
    const known = Object.entries(parts).filter(([, value]) => value !== null);
    try {
      history.replaceState(null, "", `#${new URLSearchParams(known)}`);
    } catch { /* a page within another has no address of its own */ }
  }

  function openAddress() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const number = (name) => (/^\d+$/.test(parts.get(name)) ? Number(parts.get(name)) : null);
    const run = data.runs.find((one) => one.number === (number("run") ?? data.runs[0].number));
    const image = run?.images.find(({ index }) => index === number("image"));
    if (!image) return false;
    const [head, token, show] = [number("head"), number("token"), parts.get("show")];
    byId("filter").value = "all";
    openImage(image, run, {
      quantity: parts.get("map") ?? state.quantity, a: number("a"), b: number("b"),
      view: VIEWS.includes(show) ? show : "a",
      head: head === null ? null : clamp(head, 0, run.heads - 1),
      layer: clamp(number("block") ?? state.layer, 0, run.depth - 1),
      ...(token === null ? {} : { token, pinned: true }),
    });
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
      openBlock(state.layer + (event.key === "]" ? 1 : -1));
    } else if (event.key === " ") {
      play(!state.timer);
    } else return;
    event.preventDefault();
  }

  const on = (name, type, handle) => byId(name).addEventListener(type, handle);
  // Which button of a list was clicked.
  const onButton = (name, handle) => on(name, "click", ({ target }) => {
    const button = target.closest("button");
    const place = [...byId(name).children].findIndex((child) => child.contains(button));
    if (place >= 0) handle(place);
  });
  byId("run").replaceChildren(...data.runs.map(({ number, name }) =>
    element("option", { value: number }, name)));
  byId("run").closest("label").hidden = data.runs.length === 1;
  on("run", "change", ({ target }) => {
    const run = data.runs.find(({ number }) => number === Number(target.value));
    const same = run.data === state.run.data
      && run.images.find(({ index }) => index === state.image.index);
    openImage(same || run.images[0], run);
  });
  on("filter", "change", () => {
    fillImages();
    if (!listedImages().includes(state.image)) step(1);
  });
  on("previous", "click", () => step(-1));
  on("next", "click", () => step(1));
  on("quantity", "change", ({ target }) => update({ quantity: target.value }));
  for (const name of ["a", "b"]) {
    on(name, "focus", ({ target }) => { target.value = ""; }); // or it lists itself alone
    on(name, "blur", ({ target }) => { target.value = target.title; });
    on(name, "input", ({ target }) => {
      const number = chosen().find((one) => className(one) === target.value);
      if (number !== undefined) showClass({ [name]: number });
    });
  }
  onButton("thumbs", (place) => openImage(listedImages()[place]));
  onButton("prefix", (token) => setToken(token, true));
  onButton("blocks", openBlock);
  onButton("heads", (head) => update({ head: head === state.head ? null : head }));
  onButton("views", (place) => update({ view: VIEWS[place] }));
  onButton("classes", (place) => {
    showClass({ a: topClasses(state.layer, state.token)[place].number, view: "a" });
  });
  on("block", "input", ({ target }) => openBlock(Number(target.value)));
  on("play", "click", () => play(!state.timer));
  on("opacity", "input", drawMap);
  on("stage", "pointermove", onPointer);
  on("stage", "click", onPointer);
  on("stage", "keydown", onKey);
  for (const type of ["click", "change", "keyup"]) on("explorer", type, writeAddress);
  window.addEventListener("hashchange", openAddress);

  if (!("DecompressionStream" in window)) {
    byId("about").textContent = "The explorer needs a browser of 2023 or later.";
    return;
  }
  byId("body").hidden = false;
  if (openAddress()) byId("explorer").scrollIntoView();
  else {
    const run = data.runs.find(({ number }) => number === data.opening.run);
    openImage(run.images.find(({ index }) => index === data.opening.image), run);
  }
})();
