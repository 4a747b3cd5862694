// Charts of numbers: lines, dots and bars over two axes.

const SERIES = 6;
const SIZE = 11;

// Returns up to about `count` round numbers from `low` to `high`.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function powersOfTen(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) found.push(10 ** e);
  return found;
}

// Returns a number in few letters.
function number(value) {
  const size = Math.abs(value);
  if (size >= 1e4 || (size > 0 && size < 1e-3)) {
    const letters = { 9: "G", 6: "M", 3: "k" };
    const power = size >= 1e9 ? 9 : size >= 1e6 ? 6 : size >= 1e4 ? 3 : 0;
    return power ? `${+(value / 10 ** power).toPrecision(3)}${letters[power]}` : (+value.toPrecision(3)).toExponential();
  }
  return `${+value.toPrecision(4)}`;
}

// A chart of series over two axes.
// series: {name, xs, ys, label(i): text of a point, dots: whether to draw dots and no line}.
// options: {x, y: titles of the axes, logX, zero: whether y starts at 0, height, legend}.
class Chart {
  constructor(series, options) {
    this.options = { height: 190, ...options };
    this.series = series.map((one, i) => ({
      ...one,
      points: one.xs.map((x, j) => [x, one.ys[j], j]).filter(([x, y]) => x !== null && y !== null),
      colour: `series-${i % SERIES}`,
      dash: i < SERIES ? [] : [4, 3],
    }));
    const points = this.series.flatMap((one) => one.points);
    const range = (axis) => {
      let [low, high] = [Infinity, -Infinity];
      for (const point of points) [low, high] = [Math.min(low, point[axis]), Math.max(high, point[axis])];
      return low > high ? [0, 1] : [low, high];
    };
    [this.x, this.y] = [range(0), range(1)];
    if (options.yRange) this.y = options.yRange;
    if (options.zero) this.y[0] = Math.min(0, this.y[0]);
    for (const ends of [this.x, this.y]) {
      const room = ends[0] === ends[1] ? Math.abs(ends[1]) * 0.1 || 1 : 0;
      [ends[0], ends[1]] = [ends[0] - room, ends[1] + room];
    }
    if (options.logX) {
      const powers = powersOfTen(Math.max(this.x[0], 1e-9), this.x[1]);
      this.x = [powers[0], powers[powers.length - 1]];
    }
    if (!options.yRange) {
      const room = (this.y[1] - this.y[0]) * 0.06;
      this.y = [options.zero ? this.y[0] : this.y[0] - room, this.y[1] + room];
    }
    const longest = Math.max(0, ...this.series.map((one) => one.points.length));
    this.grid = {
      rows: this.series.length,
      columns: longest,
      center: (row, column) => {
        const of = this.series[row].points;
        return of.length ? this.place(of[Math.min(column, of.length - 1)]) : [-1, -1];
      },
    };
  }

  layout(width) {
    const { height, legend } = this.options;
    this.edges = { left: 52, right: width - 18, top: 8, bottom: height - 36 };
    this.keys = [];
    let [x, row] = [this.edges.left, 0];
    for (const one of legend ? this.series : []) {
      const wide = 26 + 6.4 * one.name.length;
      if (x + wide > width && x > this.edges.left) [x, row] = [this.edges.left, row + 1];
      this.keys.push([x, height + 8 + 17 * row]);
      x += wide + 8;
    }
    return [width, height + (this.keys.length ? 17 * (row + 1) + 6 : 0)];
  }

  place([x, y]) {
    const { left, right, top, bottom } = this.edges;
    const along = this.options.logX
      ? Math.log(x / this.x[0]) / Math.log(this.x[1] / this.x[0])
      : (x - this.x[0]) / (this.x[1] - this.x[0]);
    return [left + along * (right - left), bottom - ((y - this.y[0]) / (this.y[1] - this.y[0])) * (bottom - top)];
  }

  draw(surface) {
    const { left, right, top, bottom } = this.edges;
    const quiet = { fill: colour("quiet"), size: SIZE };
    const across = this.options.logX
      ? powersOfTen(...this.x)
      : ticks(...this.x, Math.max(2, (right - left) / 60)).filter((x) => !this.options.whole || Number.isInteger(x));
    for (const y of ticks(...this.y, (bottom - top) / 24)) {
      const [, height] = this.place([this.x[0], y]);
      surface.lines([[[left, height], [right, height]]], colour("line"));
      surface.text(left - 6, height, number(y), { ...quiet, anchor: "end" });
    }
    for (const x of across) {
      const [place] = this.place([x, this.y[0]]);
      surface.lines([[[place, bottom], [place, bottom + 4]]], colour("quiet"));
      surface.text(place, bottom + 13, number(x), { ...quiet, anchor: "middle" });
    }
    surface.text((left + right) / 2, bottom + 28, this.options.x, { ...quiet, anchor: "middle" });
    surface.text(9, (top + bottom) / 2, this.options.y, { ...quiet, anchor: "middle", turned: true });
    for (const one of this.series) {
      const places = one.points.map((point) => this.place(point));
      if (!one.dots && places.length > 1) surface.lines([places], colour(one.colour), 2, one.dash);
      if (one.dots || places.length < 40) surface.dots(places, one.dots ? 5 : 2.5, colour(one.colour));
    }
    this.keys.forEach(([x, y], i) => {
      const { colour: name, dash, dots } = this.series[i];
      if (dots) surface.dots([[x + 9, y]], 5, colour(name));
      else surface.lines([[[x, y], [x + 18, y]]], colour(name), 2, dash);
      surface.text(x + 23, y, this.series[i].name, { fill: colour("text"), size: SIZE });
    });
  }

  at(x, y) {
    let [found, least] = [null, 30 ** 2];
    for (const one of this.series) {
      for (const point of one.points) {
        const [px, py] = this.place(point);
        const distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least) {
          least = distance;
          found = { text: one.label(point[2]), box: [px - 4, py - 4, 8, 8] };
        }
      }
    }
    return found;
  }
}

// Bars over 0, 1, 2, ...
// values(): a number each; label(i): their texts; isMarked(i): whether in the accent's colour.
class Bars {
  constructor({ values, label, isMarked, x, height = 130 }) {
    Object.assign(this, { values, label, isMarked, x, height });
    this.grid = { rows: 1, columns: 0, center: (_, i) => [this.left(i) + this.step / 2, this.bottom - 1] };
  }

  left(i) {
    return 40 + i * this.step;
  }

  layout(width) {
    this.heights = this.values();
    this.most = Math.max(1, ...this.heights);
    this.step = (width - 48) / this.heights.length;
    this.bottom = this.height - 32;
    this.grid.columns = this.heights.length;
    return [width, this.height];
  }

  box(i) {
    const high = (this.heights[i] / this.most) * (this.bottom - 14);
    const gap = Math.min(2, this.step / 4);
    return [this.left(i) + gap / 2, this.bottom - high, this.step - gap, high];
  }

  draw(surface) {
    const quiet = { fill: colour("quiet"), size: SIZE };
    const indices = [...this.heights.keys()];
    for (const [marked, name] of [[true, "accent"], [false, "middle"]]) {
      surface.boxes(indices.filter((i) => this.isMarked(i) === marked).map((i) => this.box(i)), colour(name));
    }
    surface.lines([[[40, this.bottom], [this.left(indices.length), this.bottom]]], colour("quiet"));
    for (const y of [0, this.most]) {
      surface.text(34, this.bottom - (y / this.most) * (this.bottom - 14), number(y), { ...quiet, anchor: "end" });
    }
    const every = Math.ceil(24 / this.step);
    for (const i of indices.filter((i) => i % every === 0)) {
      surface.text(this.left(i) + this.step / 2, this.bottom + 10, `${i}`, { ...quiet, anchor: "middle" });
    }
    surface.text((40 + this.left(indices.length)) / 2, this.bottom + 25, this.x, { ...quiet, anchor: "middle" });
  }

  at(x, y) {
    const i = Math.floor((x - 40) / this.step);
    if (i < 0 || i >= this.heights.length || y > this.bottom) return null;
    return { text: this.label(i, this.heights[i]), box: this.box(i) };
  }
}
