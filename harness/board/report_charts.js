"use strict";
(() => {
  const { data, find, make, unpack, style, percent, colour, variantOf, state, onHeldout } = report;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down", "pentagon", "x"];
  const exports = [...new Set(data.board.map((line) => line.export))];
  const drawn = new Set();

  /** Plotly reads a little HTML in names: text stays text, and marks that turn its direction go. */
  const plain = (text) =>
    String(text).replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "").replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  /** Where speed was measured: the devices of the board, and columns such as `rtf/studio-metal`. */
  function places() {
    const devices = [...new Set(data.board.filter((line) => line.rtf != null).map((line) => line.device ?? ""))];
    const columns = Object.keys(data.board[0] ?? {}).filter((name) => name.startsWith("rtf/"));
    return [
      ...devices.map((device) => ({ name: device || "a device without a name", column: "rtf", has: (line) => (line.device ?? "") === device })),
      ...columns.map((column) => ({ name: column.slice(4), column, has: () => true })),
    ];
  }

  function layout(x, y) {
    const axis = { gridcolor: style("--line"), zeroline: false, linecolor: style("--line"), automargin: true, fixedrange: true };
    return {
      margin: { l: 48, r: 12, t: 8, b: 44 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: style("--soft"), size: 12 },
      hoverlabel: { bgcolor: style("--panel"), bordercolor: style("--line"), font: { color: style("--ink") } },
      dragmode: false,
      showlegend: false,
      xaxis: { ...axis, ...x },
      yaxis: { ...axis, ...y },
    };
  }
  const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };

  /** 0.001, 0.002, 0.005 … on logarithmic axes, whose own labels leave zeros out. */
  const TICKS = [-3, -2, -1, 0, 1, 2, 3, 4].flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`)));

  /** Points that no other one beats in both; sorted by cost. */
  function front(lines, column) {
    let best = Infinity;
    return [...lines]
      .sort((a, b) => a[column] - b[column] || a.wer - b.wer)
      .filter((line) => line.wer < best && (best = line.wer, true));
  }

  const linesOf = (column, has) =>
    data.board.filter((line) => line.heldout === state.heldout && line.wer != null && line[column] > 0 && has(line));

  function scatter(id, column, heading, lines) {
    const costs = lines.map((line) => line[column]);
    const log = Math.max(...costs) > 4 * Math.min(...costs);
    const pareto = front(lines, column);
    const points = lines.map((line) => ({
      type: "scatter",
      mode: "markers",
      x: [line[column]],
      y: [line.wer],
      error_y: line.wer_lo == null ? undefined : {
        type: "data", symmetric: false, array: [line.wer_hi - line.wer], arrayminus: [line.wer - line.wer_lo],
        color: colour(variantOf(line)), thickness: 1, width: 3,
      },
      marker: {
        color: colour(variantOf(line)), size: pareto.includes(line) ? 13 : 10, opacity: pareto.includes(line) ? 1 : 0.75,
        symbol: SYMBOLS[exports.indexOf(line.export) % SYMBOLS.length], line: { color: style("--paper"), width: 1 },
      },
      hovertemplate: `<b>${plain(line.row)}</b><br>WER ${percent(line.wer)} % [${percent(line.wer_lo)}, ${percent(line.wer_hi)}]<br>${heading} %{x:.3~r}<extra></extra>`,
    }));
    const line = {
      type: "scatter", mode: "lines", hoverinfo: "skip", x: pareto.map((item) => item[column]), y: pareto.map((item) => item.wer),
      line: { color: style("--soft"), width: 1.5, dash: "dot", shape: "hv" },
    };
    Plotly.react(id, [line, ...points], layout(
      { title: { text: heading }, type: log ? "log" : "linear", ...(log ? { tickvals: TICKS, ticktext: TICKS.map(String) } : {}) },
      { title: { text: "WER" }, tickformat: ".0%", rangemode: "tozero" },
    ), CONFIG);
  }

  function drawCost() {
    const place = places()[find("device").selectedIndex];
    const bySpeed = place ? linesOf(place.column, place.has) : [];
    const bySize = linesOf("size_mib", () => true);
    const lines = [...bySpeed, ...bySize];
    // Before anything is drawn: a chart takes the width that is free at that moment.
    find("chart-rtf").closest("figure").hidden = !bySpeed.length;
    find("chart-size").closest("figure").hidden = !bySize.length;
    find("cost-section").hidden = !lines.length;
    if (bySpeed.length) scatter("chart-rtf", place.column, "RTF", bySpeed);
    if (bySize.length) scatter("chart-size", "size_mib", "size, MiB", bySize);
    const shown = new Set(lines.map(variantOf));
    find("cost-legend").replaceChildren(
      ...[...shown].map((name) => legendItem(name, colour(name), "●")),
      ...[...new Set(lines.map((line) => line.export))].map((name) => legendItem(name, "", SHAPES[exports.indexOf(name) % SHAPES.length])),
    );
  }
  const SHAPES = ["●", "■", "◆", "▲", "✚", "★", "⬢", "▼", "⬟", "✖"];

  function legendItem(name, tint, sign) {
    const mark = make("span", { ariaHidden: "true" }, `${sign} `);
    if (tint) mark.style.color = tint;
    return make("li", {}, mark, make("bdi", {}, name));
  }

  function drawCurves() {
    const charts = [["loss", ""], ["dev_loss", ""], ["dev_wer", ".0%"]].map(([name, format]) => ({
      name, format, chart: find(`chart-${name}`), curves: data.curves.filter((item) => item.series[name]),
    }));
    for (const { chart, curves } of charts) chart.closest("figure").hidden = !curves.length;
    for (const { name, format, chart, curves } of charts.filter((item) => item.curves.length)) {
      const traces = curves.map((item) => {
        const variant = `${item.model} ${item.variant}`;
        const points = item.series[name];
        return {
          type: "scatter", mode: points.length > 40 ? "lines" : "lines+markers", name: plain(variant),
          x: points.map((point) => point[0]), y: points.map((point) => point[1]),
          line: { color: colour(variant), width: 2 }, marker: { size: 6 },
          hovertemplate: `${plain(variant)}<br>step %{x}: %{y:.4~r}<extra></extra>`,
        };
      });
      Plotly.react(chart, traces, layout({ title: { text: "step" } }, { tickformat: format, rangemode: format ? "tozero" : "normal" }), CONFIG);
    }
    const names = data.curves.map((item) => `${item.model} ${item.variant}`);
    find("learning-legend").replaceChildren(...names.map((name) => legendItem(name, colour(name), "●")));
  }

  const GROUPS = { "cost-section": drawCost, learning: drawCurves };

  /** Charts are drawn when they are about to be seen. */
  async function start() {
    const select = find("device");
    select.append(...places().map((place) => make("option", {}, place.name)));
    find("device-choice").hidden = places().length < 2;
    // The policy of the page lets exactly this text run; Plotly comes packed, it is most of the file.
    document.head.append(make("script", { textContent: await unpack("plotly") }));
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((item) => item.isIntersecting)) {
        watch.unobserve(entry.target);
        drawn.add(entry.target.id);
        GROUPS[entry.target.id]();
      }
    }, { rootMargin: "600px" });
    for (const id of Object.keys(GROUPS)) if (find(id)) watch.observe(find(id));
    const redraw = () => {
      for (const id of drawn) GROUPS[id]();
    };
    select.addEventListener("change", () => drawn.has("cost-section") && drawCost());
    onHeldout(() => drawn.has("cost-section") && drawCost());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    document.documentElement.dataset.charts = "ready";
  }
  requestAnimationFrame(() => setTimeout(start));
})();
