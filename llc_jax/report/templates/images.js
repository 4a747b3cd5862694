// Images: both sides of every bit, and what queries find.

// Returns the images of the page, once they are decoded.
function decodeImages(encoded) {
  return Promise.all(encoded.map(async ([, , , content]) => {
    const image = new Image();
    image.src = `data:image/webp;base64,${content}`;
    await image.decode();
    return image;
  }));
}

// Returns in words what an image is.
function describeImage([name, taken]) {
  if (taken === null) return name;
  return taken === name ? `${name}, recognised` : `${name}, taken for ${taken}`;
}

// Rows of images; where it is narrow, the images of a bit are in two rows.
// examples: of the page's figures; pictures: its images; choose(image): what a click does, if any.
class ImageRows {
  constructor(examples, pictures, choose) {
    Object.assign(this, { examples, pictures, choose, cells: [], labels: [] });
    this.grid = {
      rows: 0,
      columns: 0,
      center: (row, column) => {
        const cells = this.rows[row];
        const { x, y, side } = cells[Math.min(column, cells.length - 1)];
        return [x + side / 2, y + side / 2];
      },
    };
  }

  // Notes a row of cells: {image, x, y, side, text, and colour and mark if there are any}.
  add(cells) {
    this.cells.push(...cells);
    if (cells.length) this.rows.push(cells);
    this.grid.rows = this.rows.length;
    this.grid.columns = Math.max(this.grid.columns, cells.length);
  }

  clear() {
    [this.cells, this.labels, this.rows] = [[], [], []];
  }

  draw(surface) {
    for (const [x, y, text, options] of this.labels) {
      surface.text(x, y, text, { size: 11, ...options, fill: colour(options.colour) });
    }
    for (const { image, x, y, side, colour: name, mark } of this.cells) {
      if (name) surface.boxes([[x - 3, y - 3, side + 6, side + 6]], colour(name));
      surface.picture(this.pictures[image], x, y, side, side);
      if (mark) surface.text(x + side / 2, y + side + 11, mark, { fill: colour(name), size: 11, anchor: "middle", bold: true });
    }
  }

  at(x, y) {
    const found = this.cells.find((cell) => x >= cell.x && x < cell.x + cell.side && y >= cell.y && y < cell.y + cell.side);
    if (!found) return null;
    const { image, side, text } = found;
    return { text, box: [found.x, found.y, side, side], act: this.choose && (() => this.choose(image)) };
  }
}

// The paper's figure 4: the images that are most certainly on each side of every bit.
class Hyperplanes extends ImageRows {
  layout(width) {
    this.clear();
    const { bits, images } = this.examples;
    const [most, room, gap] = [Math.max(...bits.flatMap(({ sides }) => sides.map((side) => side.length))), 62, 3];
    const isWide = width >= 620;
    const middle = isWide ? 22 : 0;
    const side = Math.min(66, (width - room - middle) / (isWide ? 2 * most : most) - gap);
    const along = (count) => room + count * (side + gap);
    const right = isWide ? along(most) + middle : room;
    if (isWide) this.labels.push([room, 8, "\u22121, the most certain first", { colour: "quiet" }], [right, 8, "+1, the most certain first", { colour: "quiet" }]);
    let y = isWide ? 22 : 4;
    bits.forEach(({ balance, sides }, bit) => {
      const below = isWide ? 15 : side;
      this.labels.push([2, y + 10, `bit ${bit}`, { colour: "text", bold: true }]);
      this.labels.push([2, y + 10 + below, `${Math.round(100 * balance)}%`, { colour: "quiet" }]);
      sides.forEach((members, isPlus) => {
        const sign = isPlus ? "+1" : "\u22121";
        const [left, top] = isWide ? [isPlus ? right : room, y] : [room, y + isPlus * (side + gap)];
        if (!isWide) this.labels.push([room - 6, top + side / 2, sign, { colour: "quiet", anchor: "end" }]);
        this.add(members.map(([image, probability], i) => ({
          image, side, x: left + i * (side + gap), y: top,
          text: `${describeImage(images[image])}\nbit ${bit} is ${sign} with probability ${number(probability)}`,
        })));
      });
      y += (isWide ? 1 : 2) * (side + gap) + (isWide ? 5 : 12);
    });
    return [isWide ? right + most * (side + gap) : width, y];
  }
}

// What random queries find among the other images; where it is narrow, in several rows.
class Found extends ImageRows {
  layout(width) {
    this.clear();
    const { queries, images } = this.examples;
    const most = Math.max(...queries.map(({ found }) => found.length));
    const [gap, apart] = [9, 14];
    const along = width < 560 ? Math.ceil(most / 2) : most;
    const side = Math.min(72, (width - 6 - apart) / (along + 1) - gap);
    let y = 4;
    for (const { image, found } of queries) {
      const [name] = images[image];
      const right = found.filter(([other]) => images[other][0] === name).length;
      this.labels.push([3, y + 8, `${short(name, 40)}: ${right} of ${found.length} right`, { colour: "text", bold: true }]);
      y += 21;
      const query = { image, side, x: 3, y, colour: "accent", mark: "query", text: `The query: ${describeImage(images[image])}` };
      this.add([query, ...found.map(([other, distance], i) => {
        const isRight = images[other][0] === name;
        return {
          image: other,
          side,
          x: 3 + apart + (1 + (i % along)) * (side + gap),
          y: y + Math.floor(i / along) * (side + 26),
          colour: isRight ? "right" : "wrong",
          mark: `${isRight ? "\u2713" : "\u2717"} ${distance}`,
          text: `${describeImage(images[other])}\n${isRight ? "right" : "wrong"}, ${distance} ${distance === 1 ? "bit" : "bits"} from the query`,
        };
      })]);
      y += Math.ceil(found.length / along) * (side + 26) + 8;
    }
    return [Math.min(width, 6 + apart + (along + 1) * (side + gap)), y];
  }
}
