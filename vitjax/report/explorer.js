"use strict";
// The token explorer: one picture at a time, its arrays unpacked when it is opened.
(() => {
  const at = (name) => document.getElementById(`explorer-${name}`);
  const data = JSON.parse(at("data").textContent);
  const QUANTITIES = {
    identifiability: { words: "identifiability of the label", needs: ["rank"] },
    probability: { words: "probability of the token's first class", needs: ["classes"] },
    attended: { words: "attended by the answer", needs: ["attended"] },
    helpful: { words: "helpful to the class", needs: ["helpful"], signed: true },
    difference: {
      words: "helpful minus attended", needs: ["helpful", "attended"], signed: true,
    },
  };
  const ARRAYS = {
    u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, i16: Int16Array, f4: Float32Array,
  };
  const CELL = 24;
  const state = {
    run: data.runs[0], picture: null, arrays: {}, quantity: null, layer: 0, head: null,
    token: 0, pinned: false, asked: 0,
  };
  const prefix = () => state.run.prefix.length;
  const patches = () => state.run.grid[0] * state.run.grid[1];
  const tokens = () => prefix() + patches();
  const fraction = (value, digits = 3) =>
    Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "–";

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function options(select, pairs, chosen) {
    select.replaceChildren(
      ...pairs.map(([value, words]) => element("option", words, { value })),
    );
    if (chosen !== undefined) select.value = chosen;
  }

  // ---- reading

  async function unpack(text) {
    const coded = atob(text);
    const bytes = Uint8Array.from(coded, (letter) => letter.charCodeAt(0));
    const open = new DecompressionStream("deflate");
    return new Response(new Blob([bytes]).stream().pipeThrough(open)).arrayBuffer();
  }

  async function load(run, picture) {
    const pack = JSON.parse(at(`${run.number}-${picture.image}`).textContent);
    const buffer = await unpack(pack.bytes);
    const arrays = {};
    let offset = 0;
    for (const { name, kind, shape } of pack.layout) {
      const size = shape.reduce((product, length) => product * length, 1);
      arrays[name] = new ARRAYS[kind](buffer, offset, size);
      arrays[name].top = shape[2];
      offset += arrays[name].byteLength;
    }
    return { url: pack.url, arrays };
  }

  function rank(layer, token) {
    const { rank: ranks } = state.arrays;
    if (!ranks) return NaN;
    const value = ranks[layer * tokens() + token];
    return value === 2 ** (8 * ranks.BYTES_PER_ELEMENT) - 1 ? NaN : value;
  }

  function best(layer, token) {
    const { classes, probabilities } = state.arrays;
    if (!classes) return [];
    const start = (layer * tokens() + token) * classes.top;
    return Array.from({ length: classes.top }, (_, place) => ({
      number: classes[start + place],
      name: state.run.classes[classes[start + place]],
      share: probabilities[start + place] / 255,
    }));
  }

  function ofHead(name, layer, head) {
    const start = layer * state.run.heads + head;
    const scale = state.arrays[`${name}_scale`][start];
    const steps = state.arrays[name].subarray(start * patches(), (start + 1) * patches());
    return Float32Array.from(steps, (step) => step * scale);
  }

  function shares(values) {
    const total = values.reduce((sum, value) => sum + value, 0);
    return values.map((value) => (total > 0 ? value / total : 0));
  }

  function ofHeads(quantity, layer, head) {
    if (quantity !== "difference") return ofHead(quantity, layer, head);
    const helpful = shares(ofHead("helpful", layer, head).map((v) => Math.max(v, 0)));
    const attended = shares(ofHead("attended", layer, head));
    return helpful.map((value, patch) => value - attended[patch]);
  }

  const headed = (quantity) => QUANTITIES[quantity].needs.some((n) => n !== "rank" && n !== "classes");

  function map(quantity, layer, head) {
    if (headed(quantity)) {
      const heads = head === null ? [...Array(state.run.heads).keys()] : [head];
      const sum = new Float32Array(patches());
      for (const one of heads) {
        ofHeads(quantity, layer, one).forEach((value, patch) => {
          sum[patch] += value / (quantity === "attended" ? heads.length : 1);
        });
      }
      return sum;
    }
    return Float32Array.from({ length: patches() }, (_, patch) => {
      const token = prefix() + patch;
      if (quantity === "identifiability") {
        return 1 - rank(layer, token) / state.run.classes.length;
      }
      return best(layer, token)[0].share;
    });
  }

  // ---- drawing

  function paint(canvas, quantity, layer, head, cell, marked) {
    const [rows, columns] = state.run.grid;
    const { signed } = QUANTITIES[quantity];
    const colours = data.colours[signed ? "RdBu_r" : "viridis"];
    const values = map(quantity, layer, head);
    const largest = values.reduce((most, v) => Math.max(most, Math.abs(v) || 0), 0);
    const fixed = !headed(quantity);
    canvas.width = columns * cell;
    canvas.height = rows * cell;
    const pen = canvas.getContext("2d");
    values.forEach((value, patch) => {
      const share = fixed || !largest ? value : value / largest;
      const place = Math.round(255 * (signed ? 0.5 + share / 2 : share));
      const colour = Number.isNaN(place) ? "808080" : colours.substr(6 * place, 6);
      const [x, y] = [(patch % columns) * cell, Math.floor(patch / columns) * cell];
      pen.fillStyle = `#${colour}`;
      pen.fillRect(x, y, cell, cell);
      if (quantity === "identifiability" && rank(layer, prefix() + patch) === 0) {
        pen.fillStyle = "#0a0a0e";
        pen.beginPath();
        pen.arc(x + cell / 2, y + cell / 2, 0.22 * cell, 0, 7);
        pen.fill();
      }
    });
    if (marked) border(pen, cell);
    return { largest, fixed };
  }

  function border(pen, cell) {
    const { mask } = state.arrays;
    const [rows, columns] = state.run.grid;
    if (!mask) return;
    const on = (row, column) => mask[row * columns + column] === 1;
    for (const [width, colour] of [[4, "#000"], [2, "#fff"]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      for (let row = 0; row < rows; row += 1) {
        for (let column = 0; column < columns; column += 1) {
          if (column + 1 < columns && on(row, column) !== on(row, column + 1)) {
            pen.moveTo((column + 1) * cell, row * cell);
            pen.lineTo((column + 1) * cell, (row + 1) * cell);
          }
          if (row + 1 < rows && on(row, column) !== on(row + 1, column)) {
            pen.moveTo(column * cell, (row + 1) * cell);
            pen.lineTo((column + 1) * cell, (row + 1) * cell);
          }
        }
      }
      pen.stroke();
    }
  }

  function drawMap() {
    const canvas = at("map");
    at("scale").hidden = canvas.hidden = !state.quantity;
    if (!state.quantity) return;
    const { layer, quantity, head } = state;
    const { largest, fixed } = paint(canvas, quantity, layer, head, CELL, true);
    canvas.style.opacity = at("opacity").value / 100;
    const { signed } = QUANTITIES[quantity];
    const most = fixed ? "1" : largest.toExponential(1).replace("-", "−");
    at("low").textContent = signed ? `−${most}` : "0";
    at("high").textContent = `${most} ${words(quantity)}`;
    const colours = data.colours[signed ? "RdBu_r" : "viridis"];
    const stops = Array.from({ length: 11 }, (_, n) => `#${colours.substr(6 * Math.round(25.5 * n), 6)}`);
    at("ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    drawCursor();
  }

  function drawCursor() {
    const [rows, columns] = state.run.grid;
    const cursor = at("cursor");
    const patch = state.token - prefix();
    cursor.hidden = patch < 0;
    cursor.classList.toggle("pinned", state.pinned);
    cursor.style.left = `${(100 * (patch % columns)) / columns}%`;
    cursor.style.top = `${(100 * Math.floor(patch / columns)) / rows}%`;
    cursor.style.width = `${100 / columns}%`;
    cursor.style.height = `${100 / rows}%`;
    for (const button of at("prefix").children) {
      button.setAttribute("aria-pressed", String(Number(button.value) === state.token));
    }
  }

  // Buttons stay where they are, so that the keyboard's focus does.
  function strip(name, count, words, chosen, draw, choose) {
    const held = at(name);
    while (held.children.length > count) held.lastChild.remove();
    while (held.children.length < count) {
      const number = held.children.length;
      const title = `${words} ${number + 1}`;
      const button = element("button", undefined, { type: "button", "aria-label": title });
      button.append(element("canvas"), element("span", title));
      button.addEventListener("click", () => choose(number));
      held.append(button);
    }
    [...held.children].forEach((button, number) => {
      button.setAttribute("aria-pressed", String(number === chosen));
      draw(button.firstChild, number);
    });
  }

  function drawStrips() {
    const { run, layer, head, quantity } = state;
    strip("blocks", quantity ? run.depth : 0, "block", layer,
      (canvas, number) => paint(canvas, quantity, number, head, 6, false), setLayer);
    const shown = quantity && headed(quantity);
    strip("heads", shown ? run.heads : 0, "head", head,
      (canvas, number) => paint(canvas, quantity, layer, number, 6, false),
      (number) => setHead(number === state.head ? null : number));
    at("heads-title").hidden = !shown;
    at("heads-title").textContent = `Heads of block ${layer + 1}`;
  }

  function tokenName(token) {
    if (token < prefix()) return state.run.prefix[token];
    const columns = state.run.grid[1];
    const patch = token - prefix();
    return `image token, row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
  }

  // Without a label, what helps is asked for the model's own answer.
  function words(quantity) {
    const target = state.picture.label < 0 ? "the answer" : "the label";
    return QUANTITIES[quantity].words.replace("the class", target);
  }

  function valueLine(token) {
    const { arrays, layer, head, quantity } = state;
    const patch = token - prefix();
    const parts = [];
    const place = rank(layer, token);
    if (arrays.rank) {
      const level = 1 - place / state.run.classes.length;
      parts.push(Number.isNaN(place) ? "absent" : `label's rank ${place}, identifiability ${fraction(level)}`);
    }
    if (patch >= 0 && arrays.mask && arrays.mask[patch] < 2) {
      parts.push(arrays.mask[patch] ? "on the class" : "context");
    }
    if (patch >= 0 && quantity && headed(quantity)) {
      const value = map(quantity, layer, head)[patch];
      parts.push(`${words(quantity)} ${value.toExponential(2).replaceAll("-", "−")}`);
    }
    return parts.join("; ");
  }

  function drawToken() {
    const { token, layer, run } = state;
    at("token").textContent = `${tokenName(token)}, after block ${layer + 1}`;
    at("values").textContent = valueLine(token);
    at("classes").replaceChildren(...best(layer, token).map(({ number, name, share }) => {
      const row = element("li");
      const bar = element("i");
      bar.style.width = `${100 * share}%`;
      row.append(element("span", name, { title: name }), element("b", fraction(share, 2)), bar);
      row.classList.toggle("label", number === state.picture.label);
      return row;
    }));
    const rows = Array.from({ length: run.depth }, (_, number) => {
      const row = element("tr");
      const [first] = best(number, token);
      const place = rank(number, token);
      row.append(element("td", number + 1, { class: "n" }));
      if (first) {
        row.append(element("td", first.name, { title: first.name }), element("td", fraction(first.share, 2), { class: "n" }));
      }
      if (state.arrays.rank) row.append(element("td", Number.isNaN(place) ? "–" : place, { class: "n" }));
      row.classList.toggle("current", number === layer);
      return row;
    });
    const head = element("tr");
    head.append(element("th", "block", { class: "n" }));
    if (state.arrays.classes) head.append(element("th", "first class"), element("th", "probability", { class: "n" }));
    if (state.arrays.rank) head.append(element("th", "rank", { class: "n" }));
    at("depth").replaceChildren(head, ...rows);
    drawCursor();
  }

  function drawAll() {
    at("block").value = state.layer + 1;
    at("block-number").textContent = `${state.layer + 1} of ${state.run.depth}`;
    at("head").value = state.head === null ? "all" : state.head;
    at("head").disabled = !(state.quantity && headed(state.quantity));
    drawMap();
    drawStrips();
    drawToken();
  }

  // ---- choosing

  function setLayer(layer) {
    state.layer = Math.min(Math.max(layer, 0), state.run.depth - 1);
    drawAll();
  }

  function setHead(head) {
    state.head = head;
    drawAll();
  }

  function setToken(token) {
    const bounded = Math.min(Math.max(token, 0), tokens() - 1);
    if (bounded === state.token) return drawCursor();
    state.token = bounded;
    drawToken();
  }

  function listed() {
    const wanted = at("filter").value;
    return state.run.pictures.filter(({ label, prediction }) =>
      wanted === "all" || (label >= 0 && (label === prediction) === (wanted === "right")));
  }

  function title({ image, name, label, prediction }) {
    const { classes } = state.run;
    const answer = `answer ${classes[prediction]}`;
    const truth = label < 0 ? answer : label === prediction
      ? `${classes[label]}, right` : `${classes[label]}, ${answer}`;
    return `${image}${name ? ` · ${name}` : ""} · ${truth}`;
  }

  function listPictures() {
    const pictures = listed();
    options(at("image"), pictures.map((picture) => [picture.image, title(picture)]));
    if (!pictures.length) options(at("image"), [["", "none"]]);
    if (pictures.includes(state.picture)) at("image").value = state.picture.image;
  }

  async function openPicture(picture, run = state.run) {
    const asked = (state.asked += 1);
    const { url, arrays } = await load(run, picture);
    if (asked !== state.asked) return; // another one was opened meanwhile
    Object.assign(state, { picture, arrays, pinned: false });
    if (run !== state.run || !at("image").options.length) openRun(run);
    at("picture").src = url;
    at("picture").alt = `image ${picture.image} of the data, as the model saw it`;
    at("image").value = picture.image;
    at("about").textContent = title(picture);
    const there = Object.keys(QUANTITIES).filter((name) =>
      QUANTITIES[name].needs.every((need) => need in arrays));
    if (!there.includes(state.quantity)) state.quantity = there[0] ?? null;
    options(at("quantity"), there.map((name) => [name, words(name)]), state.quantity);
    state.token = Math.min(state.token, tokens() - 1);
    drawAll();
    try {
      history.replaceState(null, "", `#image-${run.number}-${picture.image}`);
    } catch { /* a page within another has no address of its own */ }
  }

  function openRun(run) {
    state.run = run;
    state.layer = run.depth - 1;
    state.head = null;
    at("run").value = run.number;
    at("block").max = run.depth;
    options(at("head"), [["all", "all"], ...Array.from({ length: run.heads }, (_, n) => [n, n + 1])]);
    at("prefix").replaceChildren(...run.prefix.map((name, token) => {
      const button = element("button", name, { type: "button", value: token });
      button.addEventListener("click", () => { state.pinned = true; setToken(token); });
      return button;
    }));
    at("picture").classList.toggle("small", run.pixelated);
    at("stage").style.aspectRatio = `${run.grid[1]} / ${run.grid[0]}`;
    if (!listed().includes(state.picture)) at("filter").value = "all";
    listPictures();
    at("row").textContent = run.pooled
      ? "averaged over the image tokens, from which the answer is read, and helpful by the loss of their mean"
      : "both of the row of [CLS], which the answer is read from";
  }

  function step(by) {
    const pictures = listed();
    if (!pictures.length) return;
    const place = pictures.findIndex(({ image }) => image === state.picture?.image);
    openPicture(pictures[(place + by + pictures.length) % pictures.length]);
  }

  function openHash() {
    const [, number, image] = /^#image-(\d+)-(\d+)$/.exec(location.hash) ?? [];
    const run = data.runs.find((one) => one.number === Number(number));
    const picture = run?.pictures.find((one) => one.image === Number(image));
    if (!picture) return false;
    at("filter").value = "all";
    openPicture(picture, run);
    return true;
  }

  function patchAt(event) {
    const box = at("stage").getBoundingClientRect();
    const [rows, columns] = state.run.grid;
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const inside = column >= 0 && column < columns && row >= 0 && row < rows;
    return inside ? prefix() + row * columns + column : null;
  }

  function pointed(event) {
    const token = patchAt(event);
    if (token === null) return;
    if (event.type === "click") state.pinned = !(state.pinned && token === state.token);
    if (event.type === "click" || !state.pinned) setToken(token);
  }

  // The next token on the grid; from the tokens before it, its first.
  function neighbour(down, right) {
    const [rows, columns] = state.run.grid;
    const patch = state.token - prefix();
    if (patch < 0) return prefix();
    const row = Math.min(Math.max(Math.floor(patch / columns) + down, 0), rows - 1);
    const column = Math.min(Math.max((patch % columns) + right, 0), columns - 1);
    return prefix() + row * columns + column;
  }

  function pressed(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key in moves) {
      state.pinned = true;
      setToken(neighbour(...moves[event.key]));
    } else if (event.key === "[" || event.key === "]") {
      setLayer(state.layer + (event.key === "]" ? 1 : -1));
    } else return;
    event.preventDefault();
  }

  options(at("run"), data.runs.map(({ number, name }) => [number, name]));
  at("run").closest("label").hidden = data.runs.length === 1;
  at("run").addEventListener("change", (event) => {
    const run = data.runs.find(({ number }) => number === Number(event.target.value));
    const same = run.data === state.run.data
      && run.pictures.find(({ image }) => image === state.picture.image);
    openPicture(same || run.pictures[0], run);
  });
  at("image").addEventListener("change", (event) => openPicture(
    state.run.pictures.find(({ image }) => image === Number(event.target.value))));
  at("filter").addEventListener("change", () => {
    listPictures();
    if (!listed().includes(state.picture)) step(1);
  });
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("quantity").addEventListener("change", (event) => {
    state.quantity = event.target.value;
    drawAll();
  });
  at("head").addEventListener("change", ({ target }) =>
    setHead(target.value === "all" ? null : Number(target.value)));
  at("block").addEventListener("input", ({ target }) => setLayer(target.value - 1));
  at("opacity").addEventListener("input", drawMap);
  for (const kind of ["pointermove", "click"]) at("stage").addEventListener(kind, pointed);
  at("stage").addEventListener("keydown", pressed);
  window.addEventListener("hashchange", openHash);

  if (!("DecompressionStream" in window)) {
    at("about").textContent = "This browser is too old for the explorer; any of 2023 or later shows it.";
  } else {
    at("body").hidden = false;
    if (openHash()) at("explorer").scrollIntoView();
    else openPicture(state.run.pictures[0]);
  }
})();
