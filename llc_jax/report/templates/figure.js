// A figure on the page: drawn as wide as there is room, with what lies under the pointer or the
// cursor told in a tooltip, and saved as SVG and PNG.

const tooltip = document.getElementById("tooltip");
const figures = [];

class Figure {
  // host: the element that it fills.
  // title: shown above it.
  // plot: what it shows, with
  //   layout(width): prepares everything for a width, returns [width, height];
  //   draw(surface): draws it;
  //   at(x, y): what is there, or null: {text, box: [x, y, w, h], act: what a click does};
  //   grid: {rows, columns, center(row, column)}, the places that arrow keys visit.
  // description: shown below it.
  // file: the name of the files that are saved.
  constructor(host, title, plot, description = "", file = title) {
    this.file = file;
    this.plot = plot;
    this.cursor = null;
    this.width = 0;
    const figure = element("figure", host);
    this.heading = element("div", figure, "heading");
    element("strong", this.heading).textContent = title;
    for (const kind of ["SVG", "PNG"]) {
      const button = element("button", this.heading);
      button.type = "button";
      button.textContent = `\u2193 ${kind}`;
      button.title = `Save as ${kind}`;
      button.setAttribute("aria-label", `Save ${file} as ${kind}`);
      button.addEventListener("click", () => (kind === "SVG" ? this.saveSvg() : this.savePng()));
    }
    this.scroll = element("div", figure, "plot");
    this.canvas = element("canvas", this.scroll);
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${title}. ${description} Arrow keys visit its values.`);
    this.mark = element("div", this.scroll, "mark");
    this.mark.hidden = true;
    if (description) element("figcaption", figure).textContent = description;
    this.listen();
    figures.push(this);
    // The observer reports the first size too.
    new ResizeObserver(() => {
      if (this.scroll.clientWidth && this.scroll.clientWidth !== this.width) this.draw();
    }).observe(this.scroll);
  }

  draw() {
    this.width = this.scroll.clientWidth;
    if (!this.width) return;
    const [width, height] = (this.size = this.plot.layout(this.width));
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const surface = new CanvasSurface(this.canvas, width, height, window.devicePixelRatio || 1);
    this.plot.draw(surface);
    // A scroll bar that has just come or gone.
    if (this.scroll.clientWidth < this.width) {
      this.width = this.scroll.clientWidth;
      this.size = this.plot.layout(this.width);
      this.canvas.style.width = `${this.size[0]}px`;
      this.canvas.style.height = `${this.size[1]}px`;
      this.plot.draw(new CanvasSurface(this.canvas, ...this.size, window.devicePixelRatio || 1));
    }
  }

  listen() {
    const find = (event) => {
      const edge = this.canvas.getBoundingClientRect();
      return this.plot.at(event.clientX - edge.left, event.clientY - edge.top);
    };
    this.canvas.addEventListener("pointermove", (event) => this.show(find(event), event.clientX, event.clientY));
    this.canvas.addEventListener("pointerleave", () => this.show(null));
    this.canvas.addEventListener("blur", () => this.show(null));
    this.canvas.addEventListener("click", (event) => {
      const found = find(event);
      this.show(found, event.clientX, event.clientY);
      if (found && found.act) found.act();
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const { rows, columns, center } = this.plot.grid;
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Escape") return this.show(null);
    if (!rows || !columns || !(event.key in moves || event.key === "Enter" || event.key === " ")) return;
    event.preventDefault();
    if (event.key in moves) {
      const [down, right] = this.cursor ? moves[event.key] : [0, 0];
      const [row, column] = this.cursor || [0, 0];
      this.cursor = [clamp(row + down, 0, rows - 1), clamp(column + right, 0, columns - 1)];
    }
    if (!this.cursor) return;
    this.cursor = [clamp(this.cursor[0], 0, rows - 1), clamp(this.cursor[1], 0, columns - 1)];
    const [x, y] = center(...this.cursor);
    const found = this.plot.at(x, y);
    // The scroll box follows the cursor.
    const box = this.scroll;
    if (x < box.scrollLeft || x > box.scrollLeft + box.clientWidth) box.scrollLeft = x - box.clientWidth / 2;
    if (y < box.scrollTop || y > box.scrollTop + box.clientHeight) box.scrollTop = y - box.clientHeight / 2;
    if (!(event.key in moves) && found && found.act) found.act();
    const edge = this.canvas.getBoundingClientRect();
    this.show(found, edge.left + x, edge.top + y);
  }

  show(found, x, y) {
    this.mark.hidden = tooltip.hidden = !found;
    this.canvas.style.cursor = found && found.act ? "pointer" : "default";
    if (!found) return;
    const [left, top, width, height] = found.box;
    Object.assign(this.mark.style, {
      left: `${left - 2}px`,
      top: `${top - 2}px`,
      width: `${width + 4}px`,
      height: `${height + 4}px`,
    });
    tooltip.textContent = found.text;
    const edge = tooltip.getBoundingClientRect();
    const right = x + 14 + edge.width > document.documentElement.clientWidth;
    const below = y + 18 + edge.height > window.innerHeight;
    tooltip.style.left = `${Math.max(2, right ? x - edge.width - 10 : x + 14)}px`;
    tooltip.style.top = `${Math.max(2, below ? y - edge.height - 10 : y + 18)}px`;
  }

  saveSvg() {
    const surface = new SvgSurface(...this.size);
    surface.boxes([[0, 0, ...this.size]], colour("panel"));
    this.plot.draw(surface);
    save(new Blob([surface.toString()], { type: "image/svg+xml" }), `${this.file}.svg`);
  }

  savePng() {
    const canvas = document.createElement("canvas");
    const surface = new CanvasSurface(canvas, ...this.size, 2);
    surface.boxes([[0, 0, ...this.size]], colour("panel"));
    this.plot.draw(surface);
    canvas.toBlob((blob) => save(blob, `${this.file}.png`));
  }
}

function element(name, parent, className = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  parent.append(made);
  return made;
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w .-]+/g, " ");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function clamp(value, least, most) {
  return Math.min(Math.max(value, least), most);
}

// Figures take the colours of the theme, and follow it.
function redrawAll() {
  for (const figure of figures) figure.draw();
}
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
