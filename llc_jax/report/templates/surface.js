// Where a figure is drawn: a canvas on the page, or the text of an SVG to save. Both take the
// same calls, in CSS pixels.

const FONT = 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
// Browsers refuse larger canvases.
const LARGEST_SIDE = 16000;

class CanvasSurface {
  constructor(canvas, width, height, scale) {
    const fits = Math.min(scale, LARGEST_SIDE / Math.max(width, height));
    canvas.width = Math.max(1, Math.round(width * fits));
    canvas.height = Math.max(1, Math.round(height * fits));
    this.context = canvas.getContext("2d");
    this.context.scale(canvas.width / width, canvas.height / height);
  }

  // boxes: [x, y, width, height] each.
  boxes(boxes, fill) {
    this.context.fillStyle = fill;
    for (const box of boxes) this.context.fillRect(...box);
  }

  // lines: lists of [x, y].
  lines(lines, stroke, width = 1, dash = []) {
    const context = this.context;
    context.beginPath();
    for (const [first, ...rest] of lines) {
      context.moveTo(...first);
      for (const point of rest) context.lineTo(...point);
    }
    context.strokeStyle = stroke;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.setLineDash(dash);
    context.stroke();
  }

  dots(points, radius, fill) {
    this.context.fillStyle = fill;
    for (const [x, y] of points) {
      this.context.beginPath();
      this.context.arc(x, y, radius, 0, 2 * Math.PI);
      this.context.fill();
    }
  }

  // anchor: "start", "middle" or "end"; (x, y) is on the middle of the line's height.
  text(x, y, text, { size = 11, fill, anchor = "start", bold = false, turned = false } = {}) {
    const context = this.context;
    context.save();
    context.translate(x, y);
    if (turned) context.rotate(-Math.PI / 2);
    context.font = `${bold ? "600 " : ""}${size}px ${FONT}`;
    context.textAlign = { start: "left", middle: "center", end: "right" }[anchor];
    context.textBaseline = "middle";
    context.fillStyle = fill;
    context.fillText(text, 0, 0);
    context.restore();
  }

  // picture: a canvas of one pixel a cell, or an image.
  picture(picture, x, y, width, height) {
    this.context.imageSmoothingEnabled = picture.width > width;
    this.context.drawImage(picture, x, y, width, height);
  }
}

class SvgSurface {
  constructor(width, height) {
    this.size = [width, height];
    this.parts = [];
  }

  boxes(boxes, fill) {
    const path = boxes.map(([x, y, w, h]) => `M${round(x)} ${round(y)}h${round(w)}v${round(h)}h${round(-w)}z`);
    this.parts.push(`<path fill="${fill}" d="${path.join("")}"/>`);
  }

  lines(lines, stroke, width = 1, dash = []) {
    const path = lines.map((line) => "M" + line.map((point) => point.map(round).join(" ")).join("L"));
    this.parts.push(
      `<path fill="none" stroke="${stroke}" stroke-width="${width}" stroke-linejoin="round"` +
        `${dash.length ? ` stroke-dasharray="${dash.join(" ")}"` : ""} d="${path.join("")}"/>`,
    );
  }

  dots(points, radius, fill) {
    const dots = points.map(([x, y]) => `<circle cx="${round(x)}" cy="${round(y)}" r="${radius}"/>`);
    this.parts.push(`<g fill="${fill}">${dots.join("")}</g>`);
  }

  text(x, y, text, { size = 11, fill, anchor = "start", bold = false, turned = false } = {}) {
    const place = `x="${round(x)}" y="${round(y)}"${turned ? ` transform="rotate(-90 ${round(x)} ${round(y)})"` : ""}`;
    this.parts.push(
      `<text ${place} dominant-baseline="central" text-anchor="${anchor}" font-size="${size}"` +
        `${bold ? ' font-weight="600"' : ""} fill="${fill}">${escapeXml(text)}</text>`,
    );
  }

  picture(picture, x, y, width, height) {
    this.parts.push(
      `<image x="${round(x)}" y="${round(y)}" width="${round(width)}" height="${round(height)}"` +
        (picture.width > width ? "" : ' image-rendering="pixelated"') +
        ` preserveAspectRatio="none" href="${picture.src || picture.toDataURL()}"/>`,
    );
  }

  toString() {
    const [width, height] = this.size;
    return (
      `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"` +
      ` viewBox="0 0 ${width} ${height}" font-family='${FONT}'>${this.parts.join("\n")}</svg>\n`
    );
  }
}

function round(value) {
  return Math.round(value * 100) / 100;
}

// Returns text for XML, without the characters that XML cannot hold.
function escapeXml(text) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "?")
    .replace(/[&<>"]/g, (letter) => entities[letter]);
}

// Returns the value of a colour of the theme.
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Returns a function from 0...1 to [red, green, blue], through colours of the theme.
function colourScale(...names) {
  const stops = names.map((name) => colour(name).match(/\w\w/g).map((part) => parseInt(part, 16)));
  return (value) => {
    const place = Math.min(Math.max(value, 0), 1) * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    return stops[first].map((part, i) => part + (stops[first + 1][i] - part) * (place - first));
  };
}

// Returns the name, on one line and cut to a number of letters.
function short(name, letters) {
  const line = name.replace(/\s+/g, " ");
  return line.length > letters ? `${line.slice(0, Math.max(1, letters - 1))}\u2026` : line;
}
