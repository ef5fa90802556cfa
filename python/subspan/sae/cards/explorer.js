// Cards of latents out of one block of data. What is asked stands in the address after the hash,
// as in #sort=density&q=paris or #feature=12, so that a view can be linked and come back to.
(async function () {
  "use strict";
  const CARDS = 20;
  const find = (id) => document.getElementById(id);
  const list = find("feature-cards"), count = find("feature-count"), more = find("feature-more");
  const form = find("feature-form");
  if (typeof DecompressionStream === "undefined") {
    count.textContent = "The cards need a browser of 2023 or later.";
    return;
  }

  // ---- the data: a safetensors file, deflated, in base64 ------------------------------------
  const packed = Uint8Array.from(atob(find("features-data").textContent), (c) => c.charCodeAt(0));
  const inflated = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = await new Response(inflated).arrayBuffer();
  const head = Number(new DataView(bytes).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, head)));
  const about = JSON.parse(header.__metadata__.subspan);
  const KINDS = { F32: Float32Array, I32: Int32Array, U8: Uint8Array };
  const data = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [begin, end] = entry.data_offsets, kind = KINDS[entry.dtype];
    data[name] = new kind(bytes, 8 + head + begin, (end - begin) / kind.BYTES_PER_ELEMENT);
    data[name].columns = entry.shape.slice(1).reduce((a, b) => a * b, 1);
  }
  const row = (name, i) => {
    const array = data[name];
    return array ? array.subarray(i * array.columns, (i + 1) * array.columns) : [];
  };
  const texts = about.texts, n = data.fires.length, places = data.context_place.columns;
  const length = about.before + 1 + about.after;

  // ---- which latents, in which order --------------------------------------------------------
  const SORTS = {
    density: (i) => data.fires[i],
    max: (i) => data.max_activation[i],
    mean: (i) => data.mean_activation[i],
    cosine: (i) => row("neighbour_cosine", i)[0] ?? -1,
    effect: (i) => row("promoted_by", i)[0] ?? 0,
    number: (i) => -i,
  };

  // Marks the tokens of the stream at which a match of the lower-case text begins.
  let joined = null;
  function occurrences(wanted) {
    if (!joined) {
      const parts = Array.from(data.stream, (t) => (t < 0 ? "\u0000" : texts[t].toLowerCase()));
      const starts = new Int32Array(parts.length + 1);
      parts.forEach((part, i) => (starts[i + 1] = starts[i] + part.length));
      joined = { text: parts.join(""), starts };
    }
    const { text, starts } = joined, before = new Int32Array(starts.length);
    for (let at = text.indexOf(wanted), token = 0; at >= 0; at = text.indexOf(wanted, at + 1)) {
      while (starts[token + 1] <= at) token++;
      before[token + 1]++;
    }
    for (let i = 1; i < before.length; i++) before[i] += before[i - 1];
    return before; // how many begin before token i
  }

  function matching(asked, where) {
    const wanted = asked.toLowerCase(), hit = new Uint8Array(n);
    const inText = texts.map((text) => text.toLowerCase().includes(wanted));
    const any = where === "any";
    const before = any || where === "context" ? occurrences(wanted) : null;
    for (let i = 0; i < n; i++) {
      const tokens = row("promoted", i);
      if (any || where === "promoted") hit[i] = tokens.some((t) => inText[t]) ? 1 : 0;
      for (let j = 0; j < places && !hit[i]; j++) {
        const place = data.context_place[i * places + j];
        if (place < 0) continue;
        const span = row("context_span", i).subarray(2 * j, 2 * j + 2);
        if (where === "token") hit[i] = inText[data.stream[place]] ? 1 : 0;
        else if (before) hit[i] = before[place + span[1] + 1] > before[place - span[0]] ? 1 : 0;
      }
    }
    if (any && /^\d+$/.test(asked) && Number(asked) < n) hit[Number(asked)] = 1;
    return hit;
  }

  let chosen = [], shown = 0;
  function choose(state) {
    if (state.feature !== null) {
      chosen = [state.feature, ...row("neighbours", state.feature)];
      return `Latent ${state.feature} and its nearest`;
    }
    const hit = state.q ? matching(state.q, state.in) : null;
    chosen = [];
    for (let i = 0; i < n; i++) {
      if ((!hit || hit[i]) && (state.dead || data.fires[i])) chosen.push(i);
    }
    const key = SORTS[state.sort], keys = Float64Array.from({ length: n }, (_, i) => key(i));
    const sign = state.up ? 1 : -1;
    chosen.sort((a, b) => sign * (keys[a] - keys[b]) || a - b);
    return `${chosen.length.toLocaleString("en")} of ${n.toLocaleString("en")} latents`;
  }

  // ---- a card -------------------------------------------------------------------------------
  function make(tag, options = {}, ...children) {
    const { style, ...rest } = options, node = Object.assign(document.createElement(tag), rest);
    if (style) node.style.cssText = style;
    node.append(...children);
    return node;
  }
  const short = (x) => (Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(3)));

  function context(i, j) {
    const place = data.context_place[i * places + j], top = data.max_activation[i];
    const [left, right] = row("context_span", i).subarray(2 * j, 2 * j + 2);
    const around = row("context_around", i).subarray(j * length, (j + 1) * length);
    const line = make("span", { className: "tokens" });
    for (let step = -left; step <= right; step++) {
      const share = around[about.before + step] / 255, text = texts[data.stream[place + step]];
      if (!share && step) line.append(text);
      else {
        line.append(make(step ? "span" : "b", {
          textContent: text,
          className: "t",
          style: `--a:${share.toFixed(3)}`,
          title: step ? `about ${short(share * top)}` : short(data.context_value[i * places + j]),
        }));
      }
    }
    const value = short(data.context_value[i * places + j]);
    return make("li", {}, make("span", { className: "value", textContent: value }), line);
  }

  function contexts(i, from, to) {
    const lines = make("ol", { className: "contexts" });
    for (let j = from; j < to; j++) {
      if (data.context_place[i * places + j] >= 0) lines.append(context(i, j));
    }
    return lines;
  }

  function histogram(i) {
    const heights = row("histogram", i), SVG = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(SVG, "svg");
    const top = data.histogram_top[i], low = top * 2 ** (-heights.length / about.per_octave);
    svg.setAttribute("viewBox", `0 0 ${heights.length * 6} 40`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Activations from ${short(low)} to ${short(top)}, log scale`);
    heights.forEach((height, bin) => {
      const bar = document.createElementNS(SVG, "rect");
      const size = { x: bin * 6 + 0.5, y: 40 - (40 * height) / 255, width: 5, height: (40 * height) / 255 };
      for (const [name, value] of Object.entries(size)) bar.setAttribute(name, value);
      svg.append(bar);
    });
    const scale = make("div", { className: "scale" }, make("span", {}, short(low)), make("span", {}, short(top)));
    return make("div", { className: "histogram" }, svg, scale);
  }

  function tokens(title, kind, i) {
    const found = row(kind, i), by = row(`${kind}_by`, i), line = make("p", { className: "effects" });
    line.append(make("span", { className: "label", textContent: title }));
    found.forEach((t, j) => line.append(make("span", { textContent: texts[t], className: "chip", title: short(by[j]) }), " "));
    return line;
  }

  function nearest(i) {
    const cosine = row("neighbour_cosine", i), line = make("p", { className: "effects" });
    line.append(make("span", { className: "label", textContent: "nearest" }));
    row("neighbours", i).forEach((other, j) => {
      const link = make("a", { href: `#feature=${other}`, textContent: other });
      line.append(make("span", { className: "near" }, link, ` ${cosine[j].toFixed(2)}`), " ");
    });
    return line;
  }

  function card(i) {
    const fires = data.fires[i], share = fires / about.n_tokens;
    const facts = [
      ["density", `${short(100 * share)} %`], ["tokens", fires.toLocaleString("en")],
      ["max", short(data.max_activation[i])], ["mean", short(data.mean_activation[i])],
    ];
    const title = make("h3", {}, make("a", { href: `#feature=${i}`, textContent: `Latent ${i}` }));
    const about_it = make("p", { className: "facts" });
    for (const [name, value] of facts) about_it.append(make("span", {}, `${name} `, make("b", {}, value)), " ");
    const left = make("div", {}), right = make("div", {});
    if (fires) left.append(contexts(i, 0, about.n_top));
    else left.append(make("p", { className: "note", textContent: "It never fired on these tokens." }));
    const others = fires ? contexts(i, about.n_top, places) : make("ol");
    if (others.childElementCount) {
      left.append(make("details", {}, make("summary", { textContent: "Places drawn at random" }), others));
    }
    if (fires) right.append(histogram(i));
    if (data.promoted) right.append(tokens("raises", "promoted", i), tokens("lowers", "suppressed", i));
    if (data.neighbours) right.append(nearest(i));
    const body = make("div", { className: "body" }, left, right);
    const item = make("li", { id: `latent-${i}`, className: "feature", tabIndex: 0 }, title, about_it, body);
    item.setAttribute("aria-label", `Latent ${i}`);
    return item;
  }

  function grow() {
    const end = Math.min(shown + CARDS, chosen.length);
    for (; shown < end; shown++) list.append(card(chosen[shown]));
    more.hidden = shown >= chosen.length;
  }

  // ---- what is asked: the form and the address say the same ---------------------------------
  function read() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const number = Number.parseInt(asked.get("feature"), 10);
    return {
      q: asked.get("q") ?? "",
      in: asked.get("in") ?? "any",
      sort: asked.get("sort") in SORTS ? asked.get("sort") : "density",
      up: asked.get("up") === "1",
      dead: asked.get("dead") === "1",
      feature: number >= 0 && number < n ? number : null,
    };
  }

  function show() {
    if (location.hash && !location.hash.includes("=")) return; // a heading of the page
    const state = read();
    for (const name of ["q", "in", "sort"]) form.elements[name].value = state[name];
    for (const name of ["up", "dead"]) form.elements[name].checked = state[name];
    count.textContent = choose(state);
    list.replaceChildren();
    shown = 0;
    grow();
    if (state.feature !== null) list.firstElementChild.scrollIntoView();
  }

  function ask() {
    const parts = new URLSearchParams();
    for (const name of ["sort", "q", "in"]) {
      if (form.elements[name].value) parts.set(name, form.elements[name].value);
    }
    for (const name of ["up", "dead"]) if (form.elements[name].checked) parts.set(name, "1");
    history.replaceState(null, "", `#${parts}`);
    show();
  }

  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(ask, 150);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", grow);
  addEventListener("hashchange", show);
  addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey) return;
    const here = document.activeElement?.closest?.("li.feature");
    if (event.key === "/") form.elements.q.focus();
    else if (event.key === "j") (here ? here.nextElementSibling : list.firstElementChild)?.focus();
    else if (event.key === "k") here?.previousElementSibling?.focus();
    else return;
    event.preventDefault();
  });
  new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && grow(), {
    rootMargin: "600px",
  }).observe(more);
  show();
})();
