// A code whose bits one flips: the nearest class and its neighbours follow.

// The nearest classes are listed up to so many, besides those within the radius.
const NEAREST = 12;
const MOST_LISTED = 200;
// Of more bits the signs are shown by colour alone.
const MANY_BITS = 64;

class Explorer {
  // changed: called after every change.
  constructor(codes, changed) {
    this.codes = codes;
    this.changed = changed;
    this.part = (name) => document.getElementById(`explorer-${name}`);
    [this.prefix, this.radius] = [this.part("prefix"), this.part("radius")];
    // The largest value first: it bounds the value.
    this.prefix.max = this.radius.max = codes.bits;
    this.prefix.value = codes.bits;
    this.radius.value = Math.min(2, codes.bits);
    for (const range of [this.prefix, this.radius]) range.addEventListener("input", () => this.update());
    this.select = this.part("class");
    const options = codes.names.slice(0, codes.length).map((name, index) => new Option(name, index));
    options.sort((a, b) => a.text.localeCompare(b.text, undefined, { numeric: true }));
    this.select.append(...options);
    this.select.addEventListener("change", () => this.select.value && this.choose(+this.select.value));
    this.makeBits();
    this.bars = new Figure(this.part("figure"), "Classes at each distance", new Bars({
      values: () => this.counts,
      label: (i, count) => `${classes(count)} at distance ${i}`,
      isMarked: (i) => i <= +this.radius.value,
      x: "distance from the code, in bits",
      height: 120,
    }));
    this.choose(codes.order[0]);
  }

  makeBits() {
    const bar = this.part("bits");
    bar.classList.toggle("many", this.codes.bits > MANY_BITS);
    this.buttons = Array.from({ length: this.codes.bits }, (_, bit) => {
      const button = element("button", bar);
      button.type = "button";
      button.tabIndex = bit ? -1 : 0;
      element("small", button).textContent = bit;
      element("span", button);
      button.addEventListener("click", () => this.flip(bit));
      button.addEventListener("focus", () => {
        for (const other of this.buttons) other.tabIndex = other === button ? 0 : -1;
      });
      return button;
    });
    bar.addEventListener("keydown", (event) => {
      const now = this.buttons.indexOf(document.activeElement);
      const last = this.buttons.length - 1;
      const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
      if (now < 0 || next === undefined) return;
      event.preventDefault();
      this.buttons[clamp(next, 0, last)].focus();
    });
  }

  // Starts from the code of a class.
  choose(index) {
    this.load(index, this.codes.code(index));
  }

  // Shows a code, of letters or bits, beside that of a class.
  load(index, code) {
    this.start = index;
    this.bits = Uint8Array.from(code, Number);
    this.select.value = index;
    this.update();
  }

  flip(bit) {
    this.bits[bit] ^= 1;
    this.update();
  }

  update() {
    const { codes, bits } = this;
    const [prefix, radius] = [+this.prefix.value, +this.radius.value];
    const distances = codes.distances(codes.pack(bits, 1), prefix);
    this.counts = new Array(prefix + 1).fill(0);
    for (const distance of distances) this.counts[distance]++;
    const ranked = [...distances.keys()].sort((a, b) => distances[a] - distances[b] || a - b);
    this.part("prefix-value").textContent = prefix;
    this.part("radius-value").textContent = radius === 1 ? "1 bit" : `${radius} bits`;
    this.part("prefix-remark").textContent =
      `The first ${prefix} bits of the classes make ${codes.unique(prefix)} different codes.`;
    this.showBits(prefix);
    this.showAnswer(ranked, distances, radius);
    this.showNearest(ranked, distances, radius, prefix);
    this.bars.draw();
    this.changed();
  }

  showBits(prefix) {
    const own = this.codes.code(this.start);
    this.buttons.forEach((button, bit) => {
      const set = this.bits[bit] === 1;
      button.lastChild.textContent = set ? "+1" : "\u22121";
      button.setAttribute("aria-pressed", set);
      button.setAttribute("aria-label", `bit ${bit}: ${set ? "plus" : "minus"} 1`);
      button.classList.toggle("unused", bit >= prefix);
      button.classList.toggle("differs", this.bits[bit] !== own[bit]);
    });
  }

  showAnswer(ranked, distances, radius) {
    const least = distances[ranked[0]];
    const tied = ranked.filter((index) => distances[index] === least);
    const names = tied.slice(0, 3).map((index) => this.codes.names[index]).join(", ");
    const nearest = tied.length > 1
      ? `${tied.length} classes are nearest, at distance ${least}: ${names}${tied.length > 3 ? ", \u2026" : ""}.`
      : `The nearest class is ${names}, at distance ${least}.`;
    const verdict = least > radius
      ? ` It is outside the radius: the code is of no class.`
      : ` Within the radius: ${classes(ranked.filter((index) => distances[index] <= radius).length)}.`;
    this.part("answer").textContent = nearest + verdict;
  }

  showNearest(ranked, distances, radius, prefix) {
    const inside = ranked.filter((index) => distances[index] <= radius).length;
    const shown = ranked.slice(0, Math.min(Math.max(NEAREST, inside), MOST_LISTED));
    const list = this.part("nearest");
    list.replaceChildren();
    for (const index of shown) {
      const item = element("li", list, distances[index] <= radius ? "within" : "");
      element("b", item).textContent = distances[index];
      const button = element("button", item);
      button.type = "button";
      button.textContent = button.title = this.codes.names[index];
      button.addEventListener("click", () => this.choose(index));
      const code = this.codes.code(index);
      const different = [...this.bits.keys()].filter((bit) => bit < prefix && code[bit] !== this.bits[bit]);
      element("span", item).textContent =
        different.length && different.length <= 12 ? `differs in ${different.join(", ")}` : "";
    }
    const rest = inside - shown.length;
    this.part("more").textContent = rest > 0 ? `${rest} more classes are within the radius.` : "";
  }
}

function classes(count) {
  return count === 1 ? "1 class" : `${count} classes`;
}
