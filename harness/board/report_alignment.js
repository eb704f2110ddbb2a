"use strict";
const alignment = (() => {
  const words = (text) => (text ? text.split(" ") : []);
  const ERROR = 2 ** 20;
  const UNLIKE = 100;

  /** How little two words have in common at their ends: 0 to UNLIKE. */
  function unlikeness(a, b) {
    const most = Math.min(a.length, b.length);
    let start = 0;
    while (start < most && a[start] === b[start]) start++;
    let end = 0;
    while (end < most - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    return Math.round(UNLIKE * (1 - (start + end) / Math.max(a.length, b.length)));
  }

  /**
   * The fewest errors, as the score counts them; among equal ways the one whose substituted words are most alike.
   * Returns words: for each one of the reference what was heard, null if nothing; inserted: what was heard before each.
   */
  function align(reference, heard) {
    const [n, m] = [reference.length, heard.length];
    const cost = Array.from({ length: n + 1 }, (_, i) => Float64Array.from({ length: m + 1 }, (_, j) => (i === 0 ? j : j === 0 ? i : 0) * ERROR));
    const change = (i, j) => (reference[i] === heard[j] ? 0 : ERROR + unlikeness(reference[i], heard[j]));
    for (let i = 1; i <= n; i++) {
      for (let j = 1; j <= m; j++) {
        cost[i][j] = Math.min(cost[i - 1][j - 1] + change(i - 1, j - 1), cost[i - 1][j] + ERROR, cost[i][j - 1] + ERROR);
      }
    }
    const matched = new Array(n).fill(null);
    const inserted = Array.from({ length: n + 1 }, () => []);
    for (let i = n, j = m; i || j; ) {
      if (i && j && cost[i][j] === cost[i - 1][j - 1] + change(i - 1, j - 1)) matched[--i] = heard[--j];
      else if (i && cost[i][j] === cost[i - 1][j] + ERROR) i--;
      else inserted[i].unshift(heard[--j]);
    }
    return { words: matched, inserted };
  }

  /**
   * Of pairs [reference, heard], undefined for what failed.
   * Returns substitutions, deletions and insertions: [[said, heard, how often], …], most frequent first.
   */
  function countMistakes(pairs) {
    const kinds = { substitutions: new Map(), deletions: new Map(), insertions: new Map() };
    const add = (kind, said, heard) => {
      const key = JSON.stringify([said, heard]);
      kinds[kind].set(key, (kinds[kind].get(key) ?? 0) + 1);
    };
    for (const [text, heard] of pairs) {
      if (heard === undefined || heard === text) continue;
      const reference = words(text);
      const aligned = align(reference, words(heard));
      aligned.words.forEach((word, at) => {
        if (word === null) add("deletions", reference[at], "");
        else if (word !== reference[at]) add("substitutions", reference[at], word);
      });
      for (const word of aligned.inserted.flat()) add("insertions", "", word);
    }
    const sorted = (counts) => [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])).map(([key, count]) => [...JSON.parse(key), count]);
    return Object.fromEntries(Object.entries(kinds).map(([kind, counts]) => [kind, sorted(counts)]));
  }

  return { align, countMistakes, words };
})();
