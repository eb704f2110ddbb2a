"use strict";
(() => {
  const { data, find, make, unpack, state, onHeldout } = report;
  const { align, countMistakes, words } = alignment;
  if (!data.sets.length) return;
  const FAILED = -1;
  const MOST_FREQUENT = 25;
  const sets = new Map();
  let current = null;
  let shown = [];
  let picked = new Set();
  let size = 1;
  let places = new Map();
  let prefix = "";

  /** The texts of a held-out set, unpacked once. */
  async function load(name) {
    const number = data.sets.indexOf(name);
    if (!sets.has(name)) sets.set(name, unpack(`set-${number}`).then((text) => ({ name, number, clips: null, ...JSON.parse(text) })));
    return sets.get(name);
  }

  const numWords = (text) => words(text).length;

  /** What a row heard: as written, as compared, word errors; null if it failed. */
  function heardBy(row, at) {
    const number = current.heard[row][at];
    if (number === FAILED) return null;
    const [raw, norm, errors] = current.texts[at].slice(3 * number, 3 * number + 3);
    const compared = norm === 0 ? current.normalised[at] : norm;
    return { raw: raw === 0 ? compared : raw, norm: compared, errors };
  }
  /** The wording of the reference that a row is compared with. */
  const saidTo = (row, at) => current.wordings[at]?.[current.heard[row][at]] ?? current.normalised[at];
  function errorsOf(row, at) {
    const number = current.heard[row][at];
    return number === FAILED ? numWords(current.normalised[at]) : current.texts[at][3 * number + 2];
  }

  // Filters.
  function matches(at, words, kind, rows) {
    if (kind === "wrong" && !rows.some((row) => current.heard[row][at] === FAILED || errorsOf(row, at))) return false;
    if (kind === "failed" && !rows.some((row) => current.heard[row][at] === FAILED)) return false;
    if (kind === "differ" && !differ(at, rows)) return false;
    return words.every((word) => hasText(at, word, rows));
  }
  function differ(at, rows) {
    const compared = (row) => (current.heard[row][at] === FAILED ? null : current.texts[at][3 * current.heard[row][at] + 1]);
    return rows.some((row) => compared(row) !== compared(rows[0]));
  }
  function hasText(at, word, rows) {
    const { about, texts } = lowered(at);
    return about.includes(word) || rows.some((row) => texts[current.heard[row][at]]?.includes(word));
  }
  /** What is searched, in lower case, made once. */
  function lowered(at) {
    return (current.lowered[at] ??= {
      about: [current.ids[at], current.speakers[at] ?? "", current.references[at] || "", current.normalised[at]].join("\n").toLowerCase(),
      texts: Array.from({ length: current.texts[at].length / 3 }, (_, number) =>
        `${current.texts[at][3 * number] || ""}\n${current.texts[at][3 * number + 1] || current.normalised[at]}`.toLowerCase()),
    });
  }
  /** Before anybody types; a thousand at a time, so that the page answers meanwhile. */
  function warm(of, start = 0) {
    if (of !== current) return;
    for (let at = start; at < Math.min(start + 1000, of.ids.length); at++) lowered(at);
    if (start + 1000 < of.ids.length) setTimeout(warm, 0, of, start + 1000);
  }

  function filter() {
    if (!current) return;
    const rows = [...picked];
    const query = find("search").value.toLowerCase().trim();
    // The normaliser has no "ё"; an exact phrase is asked for in quotes.
    const words = [...new Set(query.startsWith('"') ? [query.replaceAll('"', "")] : query.split(/\s+/))].filter(Boolean);
    const plain = data.normalise === "ru" ? words.map((word) => word.replaceAll("ё", "е")) : words;
    const kind = find("kind").value;
    shown = current.ids.map((_, at) => at).filter((at) => matches(at, plain, kind, rows));
    const order = find("order").value;
    if (order === "long") shown.sort((a, b) => current.durations_s[b] - current.durations_s[a]);
    if (order === "errors") {
      const total = current.ids.map((_, at) => rows.reduce((sum, row) => sum + errorsOf(row, at), 0));
      shown.sort((a, b) => total[b] - total[a]);
    }
    find("count").textContent = `${shown.length} of ${current.ids.length} utterances`;
    layBlocks();
  }

  // The list: blocks that are filled when they come near the screen, and emptied when they leave it.
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !target.firstChild) fill(target);
      else if (!isIntersecting && target.firstChild) {
        target.style.height = `${target.offsetHeight}px`;
        target.replaceChildren();
      }
    }
  }, { rootMargin: "400px" });

  function layBlocks() {
    watch.disconnect();
    const blocks = [];
    // About as many lines in a block, however many rows are compared.
    size = Math.max(4, Math.round(40 / (picked.size + 2)));
    const height = 50 + 36 * (picked.size + 1);
    for (let start = 0; start < shown.length; start += size) {
      const block = make("div", { className: "block" });
      block.dataset.start = start;
      block.style.height = `${height * Math.min(size, shown.length - start)}px`;
      blocks.push(block);
    }
    find("list").replaceChildren(...blocks);
    for (const block of blocks.slice(0, 1)) fill(block);
    for (const block of blocks) watch.observe(block);
  }
  function fill(block) {
    const start = Number(block.dataset.start);
    block.replaceChildren(...shown.slice(start, start + size).map(drawUtterance));
    block.style.height = "";
  }

  function drawUtterance(at) {
    const about = make("div", { className: "about", lang: "en" }, ...playButton(at), make("bdi", {}, current.ids[at]));
    if (current.speakers[at]) about.append(make("bdi", {}, current.speakers[at]));
    about.append(`${current.durations_s[at].toFixed(1)} s`);
    const rows = [...picked];
    const box = make("div", { className: "utterance" }, about);
    box.dataset.id = current.ids[at];
    box.append(...(find("raw").checked ? [drawWhole(at, rows)] : drawAligned(at, rows)));
    return box;
  }
  function label(row, at) {
    const errors = errorsOf(row, at);
    const name = isNarrow() ? "" : current.rows[row].slice(prefix.length);
    const text = `#${places.get(row)} ${errors ? `${errors}/${numWords(saidTo(row, at))}` : "✓"} ${name}`;
    const cell = make("th", { scope: "row", lang: "en", title: current.rows[row] }, make("bdi", {}, text));
    cell.dataset.errors = errors;
    return cell;
  }
  function failedCell(row, at) {
    return make("td", { className: "failed", colSpan: 99 }, `failed: ${current.reasons[row][at] ?? ""}`);
  }
  function drawWhole(at, rows) {
    const reference = current.references[at] === 0 ? current.normalised[at] : current.references[at];
    const table = make("table", { className: "lines" });
    table.append(make("tr", { className: "said" }, make("th", { lang: "en" }, isNarrow() ? "" : "reference"), make("td", { className: "whole" }, reference)));
    for (const row of rows) {
      const heard = heardBy(row, at);
      table.append(make("tr", {}, label(row, at), heard ? make("td", { className: "whole" }, heard.raw) : failedCell(row, at)));
    }
    return table;
  }

  // Alignment: words of the reference in columns, what each row heard below, broken into lines that fit.
  function columnsOf(reference, aligned) {
    const columns = [];
    for (let at = 0; at <= reference.length; at++) {
      const most = Math.max(0, ...aligned.map((item) => (item ? item.inserted[at].length : 0)));
      for (let k = 0; k < most; k++) columns.push({ said: null, heard: aligned.map((item) => item?.inserted[at][k] ?? "") });
      if (at < reference.length) columns.push({ said: reference[at], heard: aligned.map((item) => (item ? item.words[at] : "")) });
    }
    return columns;
  }
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.font = `600 16px ${getComputedStyle(document.body).fontFamily}`;
  const widths = new Map();
  function width(word) {
    if (!widths.has(word)) widths.set(word, canvas.measureText(word).width);
    return widths.get(word);
  }
  function broken(columns, room) {
    const lines = [[]];
    let used = 0;
    for (const column of columns) {
      const own = Math.max(width(column.said ?? ""), ...column.heard.map((word) => width(word ?? column.said))) + 12;
      if (used + own > room && lines.at(-1).length) {
        lines.push([]);
        used = 0;
      }
      lines.at(-1).push(column);
      used += own;
    }
    return lines;
  }
  function heardCell(said, heard) {
    if (said === null) return make("td", {}, ...(heard ? [make("ins", {}, heard)] : []));
    if (heard === null) return make("td", {}, make("del", {}, said));
    return heard === said ? make("td", { className: "same" }, heard) : make("td", {}, make("mark", {}, heard));
  }
  function drawAligned(at, rows) {
    const wordings = new Set(rows.length ? rows.map((row) => saidTo(row, at)) : [current.normalised[at]]);
    return [...wordings].flatMap((said) => drawAgainst(words(said), at, rows.filter((row) => saidTo(row, at) === said)));
  }
  function drawAgainst(reference, at, rows) {
    const aligned = rows.map((row) => {
      const heard = heardBy(row, at);
      return heard && align(reference, words(heard.norm));
    });
    return broken(columnsOf(reference, aligned), list.clientWidth - labelWidth() - 8).map((columns) => {
      const table = make("table", { className: "lines" });
      const said = columns.map((column) => make("td", {}, column.said ?? ""));
      table.append(make("tr", { className: "said" }, make("th", { lang: "en" }, isNarrow() ? "" : "reference"), ...said));
      rows.forEach((row, place) => {
        const cells = aligned[place] ? columns.map((column) => heardCell(column.said, column.heard[place])) : [failedCell(row, at)];
        table.append(make("tr", {}, label(row, at), ...cells));
      });
      return table;
    });
  }
  const list = find("list");
  const isNarrow = () => list.clientWidth < 600;
  function labelWidth() {
    const name = (row) => (isNarrow() ? "" : current.rows[row].slice(prefix.length));
    const names = [...picked].map((row) => 0.85 * width(`#${places.get(row)} 00/00 ${name(row)}`) + 12);
    return Math.min(Math.max(70, ...names), list.clientWidth * 0.3);
  }

  // Recordings: one player for the whole page.
  const player = new Audio();
  let playing = null;
  function stop() {
    player.pause();
    playing?.classList.remove("playing");
    playing = null;
  }
  player.addEventListener("ended", stop);
  player.addEventListener("error", () => {
    if (playing) playing.textContent = "not found";
    stop();
  });
  function playButton(at) {
    const isEmbedded = find(`clips-${current.number}`) && current.clips?.[at];
    if (!isEmbedded && !current.audio?.[at]) return [];
    const button = make("button", { type: "button", ariaLabel: `play ${current.ids[at]}` }, "▶ play");
    button.addEventListener("click", () => {
      const again = button === playing;
      stop();
      if (again) return;
      playing = button;
      button.classList.add("playing");
      player.src = isEmbedded ? `data:audio/ogg;base64,${current.clips[at]}` : current.audio[at];
      player.play().catch(() => {});
    });
    return [button];
  }

  // The most frequent mistakes.
  function drawMistakes() {
    const select = find("mistakes-row");
    const names = data.board.filter((line) => line.heldout === state.heldout && current.rows.includes(line.row)).map((line) => line.row);
    const before = select.value;
    select.replaceChildren(...names.map((name) => make("option", {}, name)));
    if (names.includes(before)) select.value = before;
    else if (names.includes(data.promoted)) select.value = data.promoted;
    const row = current.rows.indexOf(select.value);
    current.mistakes[row] ??= countMistakes(row < 0 ? [] : current.ids.map((_, at) => [saidTo(row, at), heardBy(row, at)?.norm]));
    for (const place of document.querySelectorAll(".mistakes ol")) {
      const found = current.mistakes[row][place.dataset.kind].slice(0, MOST_FREQUENT);
      place.replaceChildren(...(found.length ? found.map((item) => mistake(select.value, ...item)) : [make("li", { lang: "en", className: "soft" }, "none")]));
    }
  }
  function mistake(row, said, heard, count) {
    const text = said && heard ? `${said} → ${heard}` : said || heard;
    const button = make("button", { type: "button" }, make("bdi", {}, text), make("span", { className: "n" }, String(count)));
    button.addEventListener("click", () => {
      picked.add(current.rows.indexOf(row));
      find("search").value = heard || said;
      find("kind").value = "wrong";
      drawPicks();
      filter();
      find("utterances").scrollIntoView();
    });
    return make("li", {}, button);
  }

  function drawPicks() {
    const order = data.board.filter((line) => line.heldout === state.heldout).map((line) => current.rows.indexOf(line.row)).filter((row) => row >= 0);
    picked = new Set(order.filter((row) => picked.has(row)));
    places = new Map(order.map((row, place) => [row, place + 1]));
    prefix = order.length ? common(order.map((row) => current.rows[row])) : "";
    find("picks").replaceChildren(...order.map((row) => {
      const box = make("input", { type: "checkbox", checked: picked.has(row) });
      box.addEventListener("change", () => {
        if (box.checked) picked.add(row);
        else picked.delete(row);
        picked = new Set(order.filter((item) => picked.has(item)));
        resize();
        filter();
      });
      return make("label", {}, box, `#${places.get(row)}`, make("bdi", {}, current.rows[row]));
    }));
    resize();
  }
  /** What all names begin with, up to an underscore: the model's name, where there is one model. */
  function common(names) {
    const [first] = names;
    const end = first.indexOf("_") + 1;
    return names.every((name) => name.startsWith(first.slice(0, end))) ? first.slice(0, end) : "";
  }
  /** At first: the promoted row, the best one, and the untrained model in the same export. */
  function firstPicks() {
    const lines = data.board.filter((line) => line.heldout === state.heldout && current.rows.includes(line.row));
    const best = lines.find((line) => line.row === data.promoted) ?? lines[0];
    const untrained = lines.find((line) => line.variant === "zero-shot" && line.export === best?.export && line.family === best?.family);
    return new Set([best, lines[0], untrained].filter(Boolean).map((line) => current.rows.indexOf(line.row)));
  }
  function resize() {
    list.style.setProperty("--label", `${labelWidth()}px`);
  }

  async function show() {
    const wanted = state.heldout;
    const loaded = await load(wanted);
    if (find(`clips-${loaded.number}`) && !loaded.clips) loaded.clips = JSON.parse(await unpack(`clips-${loaded.number}`));
    if (wanted !== state.heldout) return; // another one was chosen meanwhile
    loaded.lowered ??= [];
    loaded.mistakes ??= [];
    const names = current ? [...picked].map((row) => current.rows[row]) : null;
    stop();
    current = loaded;
    picked = names ? new Set(names.map((name) => current.rows.indexOf(name)).filter((row) => row >= 0)) : firstPicks();
    drawMistakes();
    drawPicks();
    filter();
    setTimeout(warm, 100, loaded);
    document.documentElement.dataset.utterances = "ready";
  }

  for (const id of ["kind", "order", "raw"]) find(id).addEventListener("change", filter);
  find("search").addEventListener("input", filter);
  find("mistakes-row").addEventListener("change", drawMistakes);
  let before = list.clientWidth;
  new ResizeObserver(() => {
    if (!current || list.clientWidth === before) return;
    before = list.clientWidth;
    resize();
    layBlocks();
  }).observe(list);
  onHeldout(show);
  show();
})();
