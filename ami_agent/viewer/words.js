// What is said of a moment, in words.
const brief = (x) => x === null ? "" : String(+x.toPrecision(4));
const rough = (x) => x === null ? "nothing known" : String(+x.toPrecision(3));
const count = (n, what) => `${n} ${what}${n === 1 || what === "series" ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const finite = (numbers) => numbers.filter((x) => x !== null);

// The energies of all that was compared but was not chosen, the lowest first.
const otherEnergies = (frame) => frame.otherCandidates.map(([, energy]) => energy);

function describe(record, n) {
  const frame = record.frames[n], step = record.steps[n];
  return [`After ${step} of ${count(record.length, "step")}.`, ...describePlan(record, frame),
    ...describeSubgoal(record, frame, step), ...describeCritic(record, frame, step)].join(" ");
}

function describePlan(record, frame) {
  const horizon = frame.planned.length / 2 - 1, others = otherEnergies(frame);
  if (!horizon) return ["It reacts, and imagines nothing."];
  const terms = record.terms.map((name, k) => `${name} ${rough(frame.terms[k])}`);
  const parts = terms.length > 1 ? ` = ${terms.join(" + ")}` : "";
  const cost = `${brief(sum(frame.terms))}${parts}`;
  if (frame.bestEnergies.length < 2) {
    return [`It goes on without thinking again: what it means to do costs ${cost}.`];
  }
  return [`It compares ${count(frame.numCandidates, "series")} of ${count(horizon, "action")}.`,
    `The chosen future costs ${cost}${compareEnergies(others)}.`,
    ...(frame.predictionError === null ? [] : [`What came differs from it by ${rough(frame.predictionError)} of ` +
      "how far its states move."])];
}

function describeSubgoal(record, frame, step) {
  if (!frame.subgoals.length || (record.successStep !== null && step >= record.successStep)) return [];
  const subgoals = frame.subgoals[frame.subgoals.length - 1], places = new Set();
  for (let i = 0; i < subgoals.length; i += 2) {
    places.add(`${Math.round(subgoals[i])} ${Math.round(subgoals[i + 1])}`);
  }
  const first = places.size > 1 ? `, the first of ${places.size} that are drawn` : "";
  return [`It aims at the subgoal, the diamond${first}.`];
}

function compareEnergies(others) {
  const each = others.map(brief), last = each.pop();
  if (last === undefined) return "";
  if (!each.length) return `, the other ${last}`;
  return `, the others ${each.length < 6 ? `${each.join(", ")} and` : `${each[0]} to`} ${last}`;
}

function describeCritic(record, frame, step) {
  if (record.successStep !== null && step >= record.successStep) return [`It has ${record.successLabel}.`];
  if (record.unit !== "steps to go") {
    return record.unit ? [`The critic: ${record.unit} ${rough(frame.criticValue)}.`] : [];
  }
  const outcome = record.successStep === null ? "it never comes there"
    : `it is to take ${record.successStep - step} more`;
  return [`The critic expects ${rough(frame.criticValue)} steps to the goal; ${outcome}.`];
}
