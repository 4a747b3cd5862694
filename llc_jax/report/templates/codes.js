// The codes of classes: their distances, the codebook as cells beside its dendrogram, and
// matrices over pairs of classes.

// Matrices and counts over the pairs of more classes than these would take a page too long.
const MOST_PAIRED = 4000;

class Codes {
  // data: the page's figures, of which names, bits, codes, order and links are used.
  constructor({ names, bits, codes, order, links }) {
    Object.assign(this, { names, bits, order, links });
    this.length = order.length;
    this.cells = Uint8Array.from(codes, (letter) => (letter === "1" ? 1 : 0));
    this.words = Math.ceil(bits / 32);
    this.packed = this.pack(this.cells, this.length);
  }

  pack(cells, rows) {
    const packed = new Uint32Array(rows * this.words);
    for (let row = 0; row < rows; row++) {
      for (let bit = 0; bit < this.bits; bit++) {
        if (cells[row * this.bits + bit]) packed[row * this.words + (bit >> 5)] |= 1 << (bit & 31);
      }
    }
    return packed;
  }

  code(index) {
    return this.cells.slice(index * this.bits, (index + 1) * this.bits);
  }

  // Returns the distances, in the first `prefix` bits, from a packed code to all classes.
  distances(packed, prefix = this.bits) {
    const found = new Uint16Array(this.length);
    for (let word = 0; word * 32 < prefix; word++) {
      const used = prefix - word * 32;
      const mask = used >= 32 ? 0xffffffff : 2 ** used - 1;
      for (let i = 0; i < this.length; i++) {
        found[i] += popcount((this.packed[i * this.words + word] ^ packed[word]) & mask);
      }
    }
    return found;
  }

  of(index) {
    return this.packed.subarray(index * this.words, (index + 1) * this.words);
  }

  // Returns how many different codes the first `prefix` bits make.
  unique(prefix) {
    const found = new Set();
    for (let i = 0; i < this.length; i++) {
      found.add(this.cells.subarray(i * this.bits, i * this.bits + prefix).join(""));
    }
    return found.size;
  }
}

function popcount(word) {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

// The paper's figure 3: classes in the order of the dendrogram, their bits as coloured cells.
class Codebook {
  constructor(codes, choose, selected) {
    Object.assign(this, { codes, choose, selected });
    this.row = codes.length <= 60 ? 18 : codes.length <= 200 ? 13 : clamp(LARGEST_SIDE / codes.length, 1, 4);
    this.top = 18;
    this.bottom = codes.links.length ? 34 : 6;
    this.grid = {
      rows: codes.length,
      columns: codes.bits,
      center: (row, bit) => [this.left + (bit + 0.5) * this.cell, this.top + (row + 0.5) * this.row],
    };
  }

  layout(width) {
    const { length, bits, links, names } = this.codes;
    this.hasNames = this.row >= 10;
    const longest = Math.max(...names.slice(0, length).map((name) => name.length));
    const labels = this.hasNames ? Math.min(6.6 * longest + 10, width * 0.32) : 4;
    this.letters = Math.floor((labels - 8) / 6.2);
    const tree = links.length ? clamp(width * 0.25, 50, 220) : 0;
    this.left = tree + 8;
    this.cell = Math.max(3, Math.min(26, (width - this.left - labels - 4) / bits));
    this.tree = links.length ? Math.max(tree, width - labels - 12 - this.cell * bits) : 0;
    this.left = this.tree + 8;
    this.end = this.left + this.cell * bits;
    return [Math.max(width, this.end + labels), this.top + this.row * length + this.bottom];
  }

  draw(surface) {
    const { length, bits, order, cells, names } = this.codes;
    const quiet = { fill: colour("quiet"), size: 10, anchor: "middle" };
    const every = Math.ceil((bits > 100 ? 26 : 16) / this.cell);
    for (let bit = 0; bit < bits; bit += every === 1 ? 1 : Math.ceil(every / 5) * 5) {
      surface.text(this.left + (bit + 0.5) * this.cell, 9, `${bit}`, quiet);
    }
    const gap = this.row >= 8 && this.cell >= 8 ? 1 : 0;
    const boxes = [[], []];
    order.forEach((index, row) => {
      for (let bit = 0; bit < bits; bit++) {
        const [x, y] = [this.left + bit * this.cell, this.top + row * this.row];
        boxes[cells[index * bits + bit]].push([x, y, this.cell - gap, this.row - gap]);
      }
    });
    surface.boxes(boxes[0], colour("minus"));
    surface.boxes(boxes[1], colour("plus"));
    const chosen = this.selected();
    order.forEach((index, row) => {
      const y = this.top + (row + 0.5) * this.row;
      if (this.hasNames) {
        const [size, bold] = [Math.min(11, this.row - 1), index === chosen];
        surface.text(this.end + 6, y, short(names[index], this.letters), { fill: colour("text"), size, bold });
      }
      if (index === chosen) surface.dots([[this.left - 4, y]], 3, colour("wrong"));
    });
    if (this.tree) this.drawTree(surface);
  }

  drawTree(surface) {
    const { length, order, links } = this.codes;
    const height = Math.max(...links.map(([, , distance]) => distance)) || 1;
    const across = (distance) => this.tree - (distance / height) * (this.tree - 10);
    const places = new Array(length + links.length);
    const sizes = new Array(length).fill(1);
    order.forEach((index, row) => (places[index] = [this.tree, this.top + (row + 0.5) * this.row]));
    const lines = links.map(([a, b, distance], i) => {
      const [[ax, ay], [bx, by]] = [places[a], places[b]];
      const x = across(distance);
      places[length + i] = [x, (ay + by) / 2];
      sizes.push(sizes[a] + sizes[b]);
      return [[ax, ay], [x, ay], [x, by], [bx, by]];
    });
    surface.lines(lines, colour("quiet"), length > 200 ? 0.7 : 1.2);
    this.merges = links.map(([, , distance], i) => [...places[length + i], distance, sizes[length + i]]);
    const y = this.top + this.row * length + 6;
    surface.lines([[[across(0), y], [across(height), y]]], colour("quiet"));
    for (const distance of ticks(0, height, (this.tree - 10) / 30)) {
      surface.text(across(distance), y + 9, number(distance), { fill: colour("quiet"), size: 10, anchor: "middle" });
    }
    surface.text(2, y + 21, "bits between clusters, on average", { fill: colour("quiet"), size: 10 });
  }

  at(x, y) {
    const row = Math.floor((y - this.top) / this.row);
    if (this.tree && x < this.tree) return this.merge(x, y);
    if (row < 0 || row >= this.codes.length) return null;
    const index = this.codes.order[row];
    const bit = Math.floor((x - this.left) / this.cell);
    const name = this.codes.names[index];
    const act = () => this.choose(index);
    if (bit < 0 || bit >= this.codes.bits) {
      return { text: name, box: [this.left, this.top + row * this.row, this.end - this.left, this.row], act };
    }
    const sign = this.codes.cells[index * this.codes.bits + bit] ? "+1" : "\u22121";
    const box = [this.left + bit * this.cell, this.top + row * this.row, this.cell, this.row];
    return { text: `${name}\nbit ${bit}: ${sign}`, box, act };
  }

  // Returns the merge of the dendrogram that lies nearest to a place.
  merge(x, y) {
    let [found, least] = [null, 12 ** 2];
    for (const [mx, my, bits, size] of this.merges) {
      const distance = (mx - x) ** 2 + (my - y) ** 2;
      if (distance >= least) continue;
      least = distance;
      const box = [mx - 4, my - 4, 8, 8];
      found = { text: `${size} classes\n${number(bits)} bits between their two halves`, box };
    }
    return found;
  }
}

// A matrix over pairs of classes, drawn as a picture of one pixel a cell.
class Matrix {
  // order: the classes of rows and columns; scale(): from 0...1 to a colour; fill(set): calls
  // set(row, column, value above 0, to 1); text(a, b): of two classes; ends: of the legend.
  // largest: which value counts where there are more cells than pixels.
  constructor({ names, order, scale, fill, text, choose, ends, axes, largest = false }) {
    Object.assign(this, { names, order, scale, fill, text, choose, ends, axes, largest });
    this.grid = {
      rows: order.length,
      columns: order.length,
      center: (row, column) => [this.left + (column + 0.5) * this.cell, this.top + (row + 0.5) * this.cell],
    };
  }

  layout(width) {
    const length = this.order.length;
    const hasNames = (Math.min(width, 640) - 110) / length >= 10;
    const longest = Math.max(...this.order.map((index) => this.names[index].length));
    this.labels = hasNames ? Math.min(6.4 * longest + 8, width * 0.25) : 0;
    this.top = 18;
    this.left = this.labels || 18;
    this.cell = Math.min((width - this.left - 2) / length, 40, 680 / length);
    this.side = this.cell * length;
    return [width, this.top + this.side + this.labels + 44];
  }

  draw(surface) {
    const length = this.order.length;
    const scale = this.scale();
    surface.picture(this.picture(scale), this.left, this.top, this.side, this.side);
    const quiet = { fill: colour("quiet"), size: 11 };
    if (this.labels) {
      const letters = Math.floor((this.labels - 6) / 6);
      this.order.forEach((index, i) => {
        const [name, place] = [short(this.names[index], letters), (i + 0.5) * this.cell];
        const options = { fill: colour("text"), size: Math.min(11, this.cell), anchor: "end" };
        surface.text(this.left - 4, this.top + place, name, options);
        surface.text(this.left + place, this.top + this.side + 5, name, { ...options, turned: true });
      });
    } else {
      surface.text(9, this.top + this.side / 2, this.axes[0], { ...quiet, anchor: "middle", turned: true });
    }
    surface.text(this.left + this.side / 2, 9, this.axes[1], { ...quiet, anchor: "middle" });
    const [y, wide] = [this.top + this.side + this.labels + 14, Math.min(160, this.side)];
    for (let i = 0; i < 40; i++) {
      const fill = `rgb(${scale(i / 39).map(Math.round).join(",")})`;
      surface.boxes([[this.left + (i * wide) / 40, y, wide / 40 + 0.5, 9]], fill);
    }
    surface.text(this.left, y + 19, this.ends[0], quiet);
    surface.text(this.left + wide, y + 19, this.ends[1], { ...quiet, anchor: "end" });
  }

  // Where there are more cells than pixels, a pixel is its cell of the largest value, so that
  // rare ones are seen, or the browser takes the mean.
  picture(scale) {
    const side = this.largest ? Math.min(this.order.length, Math.floor(this.side)) : this.order.length;
    const values = new Float32Array(side * side);
    const shrink = side / this.order.length;
    this.fill((row, column, value) => {
      const place = Math.floor(row * shrink) * side + Math.floor(column * shrink);
      values[place] = Math.max(values[place], value);
    });
    const picture = document.createElement("canvas");
    picture.width = picture.height = side;
    const context = picture.getContext("2d");
    const image = context.createImageData(side, side);
    // Many cells have one of few colours.
    const colours = Array.from({ length: 256 }, (_, i) => scale(i / 255));
    values.forEach((value, i) => image.data.set([...colours[Math.round(255 * value)], 255], 4 * i));
    context.putImageData(image, 0, 0);
    return picture;
  }

  at(x, y) {
    const [row, column] = [y - this.top, x - this.left].map((place) => Math.floor(place / this.cell));
    if (Math.min(row, column) < 0 || Math.max(row, column) >= this.order.length) return null;
    const box = [this.left + column * this.cell, this.top + row * this.cell, this.cell, this.cell];
    const [a, b] = [this.order[row], this.order[column]];
    return { text: this.text(a, b), box, act: () => this.choose(a) };
  }
}
