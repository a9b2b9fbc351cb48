// What is said of a moment, in words.
const brief = (x) => x === null ? "" : String(+x.toPrecision(4));
const rough = (x) => x === null ? "nothing known" : String(+x.toPrecision(3));
const count = (n, what) => `${n} ${what}${n === 1 || what === "series" ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const finite = (numbers) => numbers.filter((x) => x !== null);

// The energies of all that was compared but was not chosen, the lowest first.
const rivals = (moment) => moment.rivals.map(([, energy]) => energy);

function told(act, n) {
  const moment = act.moments[n], step = act.steps[n];
  return [`After ${step} of ${count(act.length, "step")}.`, ...thought(act, moment),
    ...led(act, moment, step), ...expected(act, moment, step)].join(" ");
}

function thought(act, moment) {
  const horizon = moment.chosen.length / 2 - 1, others = rivals(moment);
  if (!horizon) return ["It reacts, and imagines nothing."];
  const terms = act.terms.map((name, k) => `${name} ${rough(moment.terms[k])}`);
  const parts = terms.length > 1 ? ` = ${terms.join(" + ")}` : "";
  const cost = `${brief(sum(moment.terms))}${parts}`;
  if (moment.thinking.length < 2) {
    return [`It goes on without thinking again: what it means to do costs ${cost}.`];
  }
  return [`It compares ${count(moment.compared, "series")} of ${count(horizon, "action")}.`,
    `The chosen future costs ${cost}${beside(others)}.`,
    ...(moment.missed === null ? [] : [`What came differs from it by ${rough(moment.missed)} of ` +
      "how far its states move."])];
}

function led(act, moment, step) {
  if (!moment.hopes.length || (act.arrived !== null && step >= act.arrived)) return [];
  const hopes = moment.hopes[moment.hopes.length - 1], places = new Set();
  for (let i = 0; i < hopes.length; i += 2) {
    places.add(`${Math.round(hopes[i])} ${Math.round(hopes[i + 1])}`);
  }
  const first = places.size > 1 ? `, the first of ${places.size} that are drawn` : "";
  return [`It aims at the subgoal, the diamond${first}.`];
}

function beside(others) {
  const each = others.map(brief), last = each.pop();
  if (last === undefined) return "";
  if (!each.length) return `, the other ${last}`;
  return `, the others ${each.length < 6 ? `${each.join(", ")} and` : `${each[0]} to`} ${last}`;
}

function expected(act, moment, step) {
  if (act.arrived !== null && step >= act.arrived) return [`It has ${act.reached}.`];
  if (act.unit !== "steps to go") {
    return act.unit ? [`The critic: ${act.unit} ${rough(moment.toGo)}.`] : [];
  }
  const came = act.arrived === null ? "it never comes there"
    : `it is to take ${act.arrived - step} more`;
  return [`The critic expects ${rough(moment.toGo)} steps to the goal; ${came}.`];
}
