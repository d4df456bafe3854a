// Similarity of vectors.

/** Cosines of every vector with every other: rows of an array [n][n]. A zero vector is like nothing. */
export function similarities(vectors) {
  const units = vectors.map((vector) => {
    const length = Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0));
    return Float64Array.from(vector, (x) => (length ? x / length : 0));
  });
  const found = units.map(() => new Float64Array(units.length));
  for (let a = 0; a < units.length; a++) {
    for (let b = a; b < units.length; b++) {
      let sum = 0;
      for (let i = 0; i < units[a].length; i++) sum += units[a][i] * units[b][i];
      found[a][b] = found[b][a] = sum;
    }
  }
  return found;
}

/** Pairs {a, b, score} of different places, most alike first, at most `count`. */
export function nearestPairs(table, count) {
  const pairs = [];
  for (let a = 0; a < table.length; a++) {
    for (let b = a + 1; b < table.length; b++) pairs.push({ a, b, score: table[a][b] });
  }
  return pairs.sort((x, y) => y.score - x.score).slice(0, count);
}

/** The least and the greatest cosine of different places. */
export function range(table) {
  let low = 1;
  let high = -1;
  for (let a = 0; a < table.length; a++) {
    for (let b = 0; b < a; b++) {
      low = Math.min(low, table[a][b]);
      high = Math.max(high, table[a][b]);
    }
  }
  return low <= high ? [low, high] : [0, 1];
}
