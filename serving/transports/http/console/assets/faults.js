// Buttons that break one worker, and mend it.
const FAULTS = [
  { name: "Kill", fault: "kill", icon: "M6 6l8 8M14 6l-8 8" },
  { name: "Delay", fault: "delay=50ms", icon: "M10 5v5l3 3M10 3a7 7 0 1 0 .01 0" },
  { name: "Lie", fault: "random", icon: "M4 8h12M4 12h12M13 4 7 16" },
];
const FAULT_WORDS = { kill: "killed", "delay=50ms": "delayed by 50 ms a run", random: "lies: its scores are random" };

function faultButtons(worker, onFault) {
  return FAULTS.map(({ name, fault, icon }) => {
    const drawing = svg("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("path", { d: icon }));
    const element = make("button", { type: "button", className: "fault", title: `${name} worker ${worker}` }, drawing, make("span", { textContent: name }));
    element.ariaLabel = `${name} worker ${worker}`;
    element.ariaPressed = "false";
    element.dataset.fault = fault;
    element.addEventListener("click", () => onFault(worker, element.ariaPressed === "true" ? "" : fault));
    return {
      element,
      update(now) {
        const pressed = String(now.fault === fault);
        if (element.ariaPressed !== pressed) element.ariaPressed = pressed;
      },
    };
  });
}
