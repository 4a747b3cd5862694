// The page: its data as figures, and what a click in one does in the others.

const data = JSON.parse(document.getElementById("figures").textContent);
const place = (name) => document.getElementById(name);
const numbers = new Map(data.names.map((name, index) => [name, index]));
let choose = null;
let load = null;

if (data.bits) showCodes(new Codes(data));
if (place("confusions-figure")) showConfusions(data.confusions);
showTraining(data.training);
if (place("retrieval-figures")) showRetrieval(data.retrieval);
if (place("decoders-figure")) showDecoders(data.decoders);
if (data.examples) showExamples(data.examples);
if (data.unknown.length) showUnknown(data.unknown);

for (const box of document.querySelectorAll(".table")) {
  enhanceTable(box, (name) => {
    const index = numbers.get(name);
    return choose && index < data.order.length ? () => choose(index) : null;
  });
}

function showCodes(codes) {
  let drawn = null;
  const codebook = new Codebook(codes, (index) => choose(index), () => explorer && explorer.start);
  let explorer = null;
  const figure = new Figure(
    place("codebook-figure"), "Codebook", codebook,
    "A row is a class, a column a bit: purple is +1, beige is \u22121. A click loads the code.",
  );
  explorer = new Explorer(codes, () => {
    if (explorer && explorer.start !== drawn) {
      drawn = explorer.start;
      figure.draw();
    }
  });
  choose = (index) => {
    explorer.choose(index);
    place("explorer").scrollIntoView({ block: "nearest" });
  };
  load = (name, code) => {
    explorer.load(numbers.get(name), code);
    place("explorer").scrollIntoView({ block: "nearest" });
  };
  const label = document.createElement("label");
  label.append("Rows");
  const zoom = element("input", label);
  Object.assign(zoom, { type: "range", min: 1, max: 22, value: codebook.row });
  zoom.setAttribute("aria-label", "Height of the rows");
  zoom.addEventListener("input", () => {
    codebook.row = +zoom.value;
    figure.draw();
  });
  figure.heading.append(label);
  showDistances(codes);
}

function showDistances(codes) {
  if (codes.length < 2) return;
  if (codes.length > MOST_PAIRED) {
    place("distances-figure").textContent = `Distances between more than ${MOST_PAIRED} classes are not drawn.`;
    return;
  }
  const counts = new Array(codes.bits + 1).fill(0);
  const rows = codes.order.map((index) => {
    const distances = codes.distances(codes.of(index));
    for (let other = 0; other < index; other++) counts[distances[other]]++;
    return distances;
  });
  const most = Math.max(1, counts.findLastIndex((count) => count > 0));
  new Figure(place("distances-figure"), "Hamming distances between classes", new Matrix({
    names: codes.names,
    order: codes.order,
    scale: () => colourScale("near", "middle", "far"),
    fill: (set) => rows.forEach((distances, row) => codes.order.forEach((other, column) => set(row, column, distances[other] / most))),
    text: (a, b) => `${codes.names[a]}\n${codes.names[b]}\n${codes.distances(codes.of(a))[b]} bits apart`,
    choose: (index) => choose(index),
    ends: ["0 bits", `${most} bits`],
    axes: ["class", "classes in the order of the dendrogram"],
  }));
  if (data.representations) showRepresentations(codes, data.representations);
  new Figure(place("histogram-figure"), "Pairs of classes at each distance", new Bars({
    values: () => counts.slice(0, most + 1),
    label: (i, count) => `${count.toLocaleString("en")} pairs at ${i} bits`,
    isMarked: () => true,
    x: "bits between two class codes",
    height: 240,
  }));
  if (place("confused-figure")) showConfused(codes, data.confusions, most);
}

function showRepresentations(codes, { stage, products, ends, spearman }) {
  const bytes = Uint8Array.from(atob(products), (letter) => letter.charCodeAt(0));
  const of = (a, b) => {
    const [first, last] = a < b ? [a, b] : [b, a];
    return bytes[first * codes.length - (first * (first - 1)) / 2 + last - first] / 255;
  };
  const value = (a, b) => number(ends[0] + of(a, b) * (ends[1] - ends[0]));
  new Figure(place("representations-figure"), "Inner products of real representations", new Matrix({
    names: codes.names,
    order: codes.order,
    scale: () => colourScale("far", "middle", "near"),
    fill: (set) => codes.order.forEach((a, row) => codes.order.forEach((b, column) => set(row, column, of(a, b)))),
    text: (a, b) => `${codes.names[a]}\n${codes.names[b]}\ninner product ${value(a, b)}`,
    choose: (index) => choose(index),
    ends: ends.map(number),
    axes: ["class", "classes in the order of the dendrogram"],
  }), `Rows of the linear classifier of the stage ${stage}, in the same order. Their rank correlation with ` +
    `inner products of the codes is ${number(spearman)}, mean over classes; with random codes it is about 0.`);
}

function showConfusions({ pairs, totals, stage, most_left_out: mostLeftOut }) {
  if (data.names.length > MOST_PAIRED) return;
  // Classes without a code come after those of the dendrogram.
  const order = [...data.order];
  for (let index = order.length; index < data.names.length; index++) order.push(index);
  const row = new Array(order.length);
  order.forEach((index, place) => (row[index] = place));
  const images = new Map(pairs.map(([a, b, count]) => [a * order.length + b, count]));
  new Figure(place("confusions-figure"), "What classes are taken for", new Matrix({
    names: data.names,
    order,
    scale: () => colourScale("none", "wrong"),
    fill: (set) => {
      for (const [a, b, count] of pairs) set(row[a], row[b], 0.2 + 0.8 * Math.sqrt(count / totals[a]));
    },
    text: (a, b) => {
      const known = images.get(a * order.length + b);
      if (known === undefined && mostLeftOut) {
        return `${data.names[a]}\ntaken for ${data.names[b]}: at most ${mostLeftOut} of ${totals[a]}`;
      }
      const count = known || 0;
      const share = totals[a] ? ` of ${totals[a]} (${((100 * count) / totals[a]).toFixed(1)}%)` : "";
      return a === b
        ? `${data.names[a]}\nrecognised: ${count}${share}`
        : `${data.names[a]}\ntaken for ${data.names[b]}: ${count}${share}`;
    },
    choose: (index) => choose && index < data.order.length && choose(index),
    ends: ["0% of a class", "100%"],
    axes: ["class", "taken for"],
    largest: true,
  }), `Evaluation images of the stage ${stage}. Small shares are drawn stronger than they are.`);
}

function showConfused(codes, { pairs, most_left_out: mostLeftOut }, most) {
  const counts = new Array(codes.bits + 1).fill(0);
  for (const [a, b, images] of pairs) {
    if (a !== b && Math.max(a, b) < codes.length) counts[codes.distances(codes.of(a))[b]] += images;
  }
  new Figure(place("confused-figure"), "Wrong images at each distance", new Bars({
    values: () => counts.slice(0, most + 1),
    label: (i, count) => `${count.toLocaleString("en")} images were taken for a class ${i} bits away`,
    isMarked: () => true,
    x: "bits between the class and the one taken for it",
    height: 240,
  }), mostLeftOut ? `Without pairs of at most ${mostLeftOut} images.` : "");
}

function showTraining(stages) {
  const known = { accuracy: "accuracy in training", bits_right: "share of bits that are right" };
  for (const host of document.querySelectorAll(".charts")) {
    const { stage, epochs, metrics } = stages[host.dataset.stage];
    for (const [name, values] of Object.entries(metrics)) {
      const title = known[name] || name.replaceAll("_", " ");
      new Figure(host, title, new Chart(
        [{ name, xs: epochs, ys: values, label: (i) => `epoch ${epochs[i]}\n${title}: ${number(values[i])}` }],
        { x: "epoch", y: "", height: 170, whole: true },
      ), "", `${stage} ${title}`);
    }
  }
}

function showRetrieval(curves) {
  for (const stage of new Set(curves.map((curve) => curve.stage))) {
    const series = curves.filter((curve) => curve.stage === stage).map((curve) => ({
      name: curve.by === "radius" ? `${curve.title}, by radius` : curve.title,
      xs: curve.recall,
      ys: curve.precision,
      label: (i) => `${curve.title}\n${curve.by} ${curve.at[i]}\nprecision ${number(curve.precision[i])}, recall ${number(curve.recall[i])}`,
    }));
    new Figure(place("retrieval-figures"), `${stage}: precision and recall`, new Chart(
      series, { x: "recall", y: "precision", height: 300, legend: true, zero: true },
    ));
  }
}

function showDecoders(decoders) {
  const series = decoders.map(({ name, accuracy, rate }) => ({
    name,
    xs: [rate],
    ys: [100 * accuracy],
    dots: true,
    label: () => `${name}\naccuracy ${(100 * accuracy).toFixed(2)}%\n${number(rate)} codes a second`,
  }));
  new Figure(place("decoders-figure"), "Decoders: accuracy and throughput", new Chart(
    series, { x: "codes per second", y: "accuracy in %", logX: true, height: 260, legend: true },
  ));
}

async function showExamples(examples) {
  const pictures = await decodeImages(examples.images);
  const pick = examples.explorable && load
    ? (image) => load(examples.images[image][0], examples.images[image][2])
    : null;
  const hint = pick ? " A click on an image loads its code." : "";
  new Figure(
    place("hyperplanes-figure"), "What each bit divides", new Hyperplanes(examples, pictures, pick),
    `Evaluation images of the stage ${examples.stage}, sorted by the probability of the bit; the share is that of +1.${hint}`,
  );
  if (!examples.queries.some(({ found }) => found.length)) return;
  new Figure(
    place("found-figure"), "What random images find", new Found(examples, pictures, pick),
    "The nearest of the other evaluation images, with their distance in bits; equally near ones " +
      `are in a random order. \u2713 is of the query's class, \u2717 is not.${hint}`,
  );
}

function showUnknown(curves) {
  const words = (score) => score.replaceAll("_", " ");
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  for (const set of new Set(curves.map((curve) => curve.set))) {
    const of = curves.filter((curve) => curve.set === set);
    new Figure(place("unknown-figures"), `${set}: known and unknown images`, new Chart(
      of.map(({ score, figures, roc }) => ({
        name: `${words(score)}, AUROC ${percent(figures.auroc)}`,
        xs: roc.known,
        ys: roc.unknown,
        label: (i) => `${words(score)}${roc.threshold[i] === null ? "" : ` from ${number(roc.threshold[i])}`}\n` +
          `unknown images found: ${percent(roc.unknown[i])}\nknown images called unknown: ${percent(roc.known[i])}`,
      })),
      { x: "known images called unknown", y: "unknown images found", height: 330, legend: true, yRange: [0, 1] },
    ));
    const histogram = ({ score, histogram: { at, known, unknown } }) => new Chart(
      [["known", known], [set, unknown]].map(([name, shares]) => ({
        name, xs: at, ys: shares, label: (i) => `${name}: ${percent(shares[i])} at ${number(at[i])}`,
      })),
      { x: `${words(score)}: the higher, the more unknown`, y: "share of images", height: 330, legend: true, zero: true },
    );
    const figure = new Figure(place("unknown-figures"), `${set}: a score`, histogram(of[0]));
    const select = element("select", figure.heading);
    select.setAttribute("aria-label", `Score of ${set}`);
    select.append(...of.map(({ score }, i) => new Option(words(score), i)));
    select.addEventListener("change", () => {
      figure.plot = histogram(of[+select.value]);
      figure.cursor = null;
      figure.draw();
    });
  }
}
