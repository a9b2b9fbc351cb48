// The text below the picture of a step.
const brief = (x) => x === null ? "" : String(+x.toPrecision(4));
const rough = (x) => x === null ? "unknown" : String(+x.toPrecision(3));
const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const finite = (numbers) => numbers.filter((x) => x !== null);

function describe(record, n) {
  const frame = record.frames[n], step = record.steps[n];
  return [`After ${step} of ${count(record.length, "step")}.`, ...describePlan(record, frame),
    ...describeSubgoal(record, frame, step), ...describeCritic(record, frame, step)].join(" ");
}

function describePlan(record, frame) {
  const horizon = frame.planned.length / 2 - 1;
  if (!horizon) return ["The agent acts by its policy, without planning."];
  const terms = record.terms.map((name, k) => `${name} ${rough(frame.terms[k])}`);
  const parts = terms.length > 1 ? ` = ${terms.join(" + ")}` : "";
  const energy = `${brief(sum(frame.terms))}${parts}`;
  if (frame.bestEnergies.length < 2) {
    return [`The agent goes on with its plan without planning again; its energy is ${energy}.`];
  }
  const sentences = [
    `The planner compares ${count(frame.numCandidates, "sequence")} of ${count(horizon, "action")}.`,
    `The plan has the energy ${energy}${describeOthers(frame)}.`];
  if (frame.predictionError !== null) {
    sentences.push(`Its prediction error is ${rough(frame.predictionError)}.`);
  }
  return sentences;
}

// The energies of the candidates that were not chosen, the lowest first.
function describeOthers(frame) {
  const energies = frame.otherCandidates.map(([, energy]) => brief(energy)), last = energies.pop();
  if (last === undefined) return "";
  if (!energies.length) return `, the other candidate ${last}`;
  const all = energies.length < 6 ? `${energies.join(", ")} and` : `${energies[0]} to`;
  return `, the other candidates ${all} ${last}`;
}

function describeSubgoal(record, frame, step) {
  if (!frame.subgoals.length || (record.successStep !== null && step >= record.successStep)) return [];
  const subgoals = frame.subgoals[frame.subgoals.length - 1], positions = new Set();
  for (let i = 0; i < subgoals.length; i += 2) {
    positions.add(`${Math.round(subgoals[i])} ${Math.round(subgoals[i + 1])}`);
  }
  const first = positions.size > 1
    ? `, the first of ${positions.size}; the dotted line is their order, not a path` : "";
  return [`The diamond is the current subgoal${first}.`];
}

function describeCritic(record, frame, step) {
  if (record.successStep !== null && step >= record.successStep) {
    return [`The agent has ${record.successLabel}.`];
  }
  if (record.unit !== "steps to go") {
    return record.unit ? [`The critic's estimate of ${record.unit} is ${rough(frame.criticValue)}.`] : [];
  }
  const outcome = record.successStep === null ? "the agent never reaches it"
    : `the agent takes ${record.successStep - step}`;
  return [`The critic estimates ${rough(frame.criticValue)} steps to the goal; ${outcome}.`];
}
