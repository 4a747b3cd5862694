// The page: its data as figures, and what a click in one does in the others.

const data = JSON.parse(document.getElementById("figures").textContent);
const place = (name) => document.getElementById(name);
let choose = null;

if (data.bits) showCodes(new Codes(data));
if (place("confusions-figure")) showConfusions(data.confusions);
showTraining(data.training);
if (place("retrieval-figures")) showRetrieval(data.retrieval);
if (place("decoders-figure")) showDecoders(data.decoders);

const numbers = new Map(data.names.map((name, index) => [name, index]));
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
  new Figure(place("histogram-figure"), "Pairs of classes at each distance", new Bars({
    values: () => counts.slice(0, most + 1),
    label: (i, count) => `${count.toLocaleString("en")} pairs at ${i} bits`,
    isMarked: () => true,
    x: "bits between two class codes",
    height: 240,
  }));
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
