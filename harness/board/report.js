"use strict";
// Transcripts and names are data: they reach the page as text nodes only, never as markup.
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);

  /** An element with properties and children; strings become text. */
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  /** What Python packed: base64 of gzip; as text. */
  async function unpack(id) {
    const packed = find(id).textContent.trim();
    const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(packed) : Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const percent = (rate) => (rate == null ? "–" : (100 * rate).toFixed(1));
  const variants = [...new Set([...data.curves.map((item) => `${item.model} ${item.variant}`), ...data.board.map(variantOf)])];

  function variantOf(line) {
    return `${data.models[line.row]} ${line.variant}`;
  }

  // Okabe and Ito's palette, told apart by the colour-blind; the untrained model is grey.
  const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#7f5fc4", "#a05a2c", "#4c8c2b"];
  function colour(variant) {
    if (variant.endsWith(" zero-shot")) return "#8a8f98";
    const trained = variants.filter((name) => !name.endsWith(" zero-shot"));
    return PALETTE[trained.indexOf(variant) % PALETTE.length];
  }

  const state = { heldout: data.sets[0] ?? "" };
  const listeners = [];
  function onHeldout(listener) {
    listeners.push(listener);
  }
  function showExports() {
    for (const part of document.querySelectorAll(".of-set")) part.hidden = part.dataset.heldout !== state.heldout;
  }
  function choose(heldout) {
    for (const select of document.querySelectorAll("select.heldout")) {
      if (heldout || select.id === "board-set") select.value = heldout;
    }
    if (heldout && heldout !== state.heldout) {
      state.heldout = heldout;
      for (const listener of listeners) listener();
    }
    filterBoard();
  }

  // The leaderboard: its rows are in the page already.
  const body = find("board").tBodies[0];
  const rows = [...body.rows];
  const headings = [...find("board").tHead.rows[0].cells].filter((cell) => cell.dataset.column);

  function valueOf(row, column) {
    return [...row.cells].find((cell) => cell.dataset.column === column).dataset.value;
  }
  // Seconds of different devices are not comparable: by speed, rows are sorted within each device.
  const TIMED = /^((speed_|fallback_)?rtf(_spread)?|latency_p\d+_ms|load_s|throughput_x|best_batch|energy_j_per_audio_s)$/;
  const hasDevices = headings.some((heading) => heading.dataset.column === "device");

  function sortBoard(heading) {
    const column = heading.dataset.column;
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const groupOf = (row) => (hasDevices && TIMED.test(column) ? valueOf(row, "device") : "");
    const compare = (left, right) => {
      if (groupOf(left) !== groupOf(right)) return groupOf(left) < groupOf(right) ? -1 : 1;
      const [a, b] = [valueOf(left, column), valueOf(right, column)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = Number.isNaN(Number(a) - Number(b)) ? a.localeCompare(b) : Number(a) - Number(b);
      return down ? -order : order;
    };
    body.append(...rows.sort(compare));
    markGroups();
  }
  function filterBoard() {
    const words = find("board-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const heldout = find("board-set").value;
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = (heldout !== "" && row.dataset.heldout !== heldout) || !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    find("board-count").textContent = shown === rows.length ? "" : `${shown} of ${rows.length}`;
    markGroups();
  }
  function markGroups() {
    let before = null;
    for (const row of rows.filter((item) => !item.hidden)) {
      row.classList.toggle("first", before !== null && before !== row.dataset.heldout && !document.querySelector("#board [aria-sort]"));
      before = row.dataset.heldout;
    }
  }
  function drawRanges() {
    const most = Math.max(...data.board.map((line) => line.wer_hi ?? line.wer ?? 0)) || 1;
    rows.forEach((row, number) => {
      const line = data.board[number];
      const range = row.querySelector(".range");
      if (!range || line.wer == null) return;
      const place = (value) => `${(100 * value) / most}%`;
      const bar = make("i");
      bar.style.left = place(line.wer_lo ?? line.wer);
      bar.style.width = place((line.wer_hi ?? line.wer) - (line.wer_lo ?? line.wer));
      const dot = make("b");
      dot.style.left = place(line.wer);
      range.append(bar, dot);
    });
  }

  onHeldout(showExports);
  showExports();
  drawRanges();
  markGroups();
  for (const heading of headings) heading.querySelector("button").addEventListener("click", () => sortBoard(heading));
  find("board-filter").addEventListener("input", filterBoard);
  for (const select of document.querySelectorAll("select.heldout")) {
    select.addEventListener("change", () => choose(select.value));
  }
  return { data, find, make, unpack, style, percent, colour, variantOf, state, onHeldout, choose };
})();
