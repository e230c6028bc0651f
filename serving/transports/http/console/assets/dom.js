// Elements and figures.
const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Changes a text only where it differs: most figures stay as they are from one snapshot to the next.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function mark(element, name, value) {
  if (element.dataset[name] !== value) element.dataset[name] = value;
}

function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
}

function count(value) {
  return Math.round(value).toLocaleString("en");
}

function listed(names, most = 4) {
  const some = names.slice(0, most).join(", ");
  return names.length > most ? `${some} and ${names.length - most} more` : some;
}

const still = matchMedia("(prefers-reduced-motion: reduce)");
