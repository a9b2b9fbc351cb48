// What is said of a moment, in words.
const brief = (x) => x === null ? "" : String(+x.toPrecision(4));
const rough = (x) => x === null ? "nothing known" : String(+x.toPrecision(3));
const count = (n, what) => `${n} ${what}${n === 1 || what === "series" ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const finite = (numbers) => numbers.filter((x) => x !== null);

// The energies of all that was compared but was not chosen, the lowest first.
function rivals(moment) {
  const chosen = sum(moment.terms), energies = finite(moment.energies).sort((a, b) => a - b);
  const gaps = energies.map((energy) => Math.abs(energy - chosen));
  energies.splice(gaps.indexOf(Math.min(...gaps)), 1);
  return energies;
}

function told(act, n) {
  const moment = act.moments[n], step = act.steps[n];
  return [`After ${step} of ${count(act.length, "step")}.`, ...thought(act, moment),
    ...(moment.hopes.length ? ["It aims at the subgoal, the diamond."] : []),
    ...expected(act, moment, step)].join(" ");
}

function thought(act, moment) {
  const horizon = moment.chosen.length / 2 - 1, others = rivals(moment);
  if (!horizon) return ["It reacts, and imagines nothing."];
  const terms = act.terms.map((name, k) => `${name} ${rough(moment.terms[k])}`);
  const parts = terms.length > 1 ? ` = ${terms.join(" + ")}` : "";
  const cost = `${rough(sum(moment.terms))}${parts}`;
  if (moment.thinking.length < 2) {
    return [`It goes on without thinking again: what it means to do costs ${cost}.`];
  }
  return [`It compares ${count(others.length + 1, "series")} of ${count(horizon, "action")}.`,
    `The cheapest future costs ${cost}${others.length ? `, the others ${range(others)}` : ""}.`];
}

function range(numbers) {
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)].map(rough);
  return least === most ? least : `${least} to ${most}`;
}

function expected(act, moment, step) {
  if (act.arrived !== null && step >= act.arrived) return [`It has ${act.reached}.`];
  if (act.unit !== "steps to go") {
    return act.unit ? [`The critic: ${act.unit} ${rough(moment.toGo)}.`] : [];
  }
  const came = act.arrived === null ? "it never came there" : `it took ${act.arrived - step}`;
  return [`The critic expects ${rough(moment.toGo)} steps to the goal; ${came}.`];
}
