// The page works without this file, but for dropping a file, copying, brushing and completing names.
"use strict";

// Copy buttons: data-copy names the element whose text is taken.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and press Ctrl-C";
  }
  setTimeout(() => { button.textContent = words; }, 1500);
});

// A file dropped on [data-drop] goes into its file input, which says so as if it had been chosen.
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    const area = event.target.closest?.("[data-drop]");
    if (!area) return;
    event.preventDefault();
    area.classList.toggle("over", name === "dragover");
    if (name !== "drop" || !event.dataTransfer.files.length) return;
    const input = area.querySelector("input[type=file]");
    const chosen = new DataTransfer();
    chosen.items.add(event.dataTransfer.files[0]);
    input.files = chosen.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
}

// Another corpus has other domains and sources: the form is asked for again, without the file.
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-reload]")) {
    const query = new URLSearchParams({ [event.target.name]: event.target.value });
    location.assign(`${location.pathname}?${query}`);
  }
});

// Brushing: dragging over a histogram fills the two fields that data-brush names and asks again. From the keyboard arrows
// move a range over the focused histogram, with Shift its right end, and Enter asks.
for (const box of document.querySelectorAll("[data-brush]")) {
  const svg = box.querySelector("svg");
  const axis = svg?.querySelector(".axis");
  const ticks = [...(svg?.querySelectorAll("[data-value]") ?? [])];
  if (!axis || ticks.length < 2) continue;
  const [first, last] = [ticks[0], ticks[ticks.length - 1]].map((tick) => [Number(tick.getAttribute("x")), Number(tick.dataset.value)]);
  const placeOf = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
  const valueAt = (x) => first[1] + ((x - first[0]) / (last[0] - first[0])) * (last[1] - first[1]);
  const fields = box.dataset.brush.split(",").map((name) => document.querySelector(`form [name="${name}"]`));
  let start = null;
  const range = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  range.setAttribute("class", "chosen");
  const show = (from, to) => {
    range.setAttribute("x", from);
    range.setAttribute("width", to - from);
    range.setAttribute("y", 12);
    range.setAttribute("height", Number(axis.getAttribute("y1")) - 12);
    if (!range.isConnected) svg.append(range);
  };
  const fill = (ends) => fields.forEach((field, place) => { field.value = valueAt(ends[place]).toPrecision(4); });
  svg.addEventListener("pointerdown", (event) => { start = placeOf(event); });
  svg.addEventListener("dragstart", (event) => event.preventDefault());
  svg.addEventListener("pointermove", (event) => {
    if (start !== null) show(...[start, placeOf(event)].sort((a, b) => a - b));
  });
  window.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const ends = [start, placeOf(event)].sort((a, b) => a - b);
    start = null;
    if (ends[1] - ends[0] < 6) { range.remove(); return; }
    fill(ends);
    fields[1].form.requestSubmit();
  });
  const [left, right] = ["x1", "x2"].map((name) => Number(axis.getAttribute(name)));
  const step = (right - left) / 40;
  let ends = null;
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowRight: step, ArrowLeft: -step }[event.key];
    if (by && event.target === svg) {
      ends ??= [left + 18 * step - by, left + 22 * step - by];
      ends = event.shiftKey ? [ends[0], ends[1] + by] : ends.map((end) => end + by);
      ends[0] = Math.min(Math.max(ends[0], left), right - step);
      ends[1] = Math.min(Math.max(ends[1], ends[0] + step), right);
      show(...ends);
      fill(ends);
      event.preventDefault();
    } else if (event.key === "Enter" && ends && event.target === svg) fields[1].form.requestSubmit();
  });
}

// Buttons with data-plain (build, files) send their form as the browser does: the answer is another view, or a file.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-plain]");
  if (!button || !button.form) return;
  event.preventDefault();
  event.stopPropagation();
  if (!button.form.reportValidity()) return;
  const form = button.form;
  const [action, sent] = [form.action, document.createElement("input")];
  sent.type = "hidden";
  sent.name = button.name || "build";
  sent.value = button.value;
  if (button.name) form.append(sent);
  form.action = button.getAttribute("formaction") || action;
  form.submit();
  form.action = action;
  sent.remove();
}, true);

// Completion: words of the datalist that data-complete names, for the word before the caret of a text area.
for (const area of document.querySelectorAll("[data-complete]")) {
  const words = [...document.getElementById(area.dataset.complete).options].map((option) => [option.value, option.label]);
  const list = document.createElement("ul");
  list.id = `${area.dataset.complete}-list`;
  list.className = "completions";
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Names that fit");
  list.hidden = true;
  area.after(list);
  area.setAttribute("aria-controls", list.id);
  let chosen = 0;
  const begun = () => area.value.slice(0, area.selectionStart).match(/[A-Za-z_]\w*$/)?.[0] ?? "";
  const close = () => { list.hidden = true; area.removeAttribute("aria-activedescendant"); };
  const mark = () => {
    [...list.children].forEach((item, place) => item.setAttribute("aria-selected", String(place === chosen)));
    area.setAttribute("aria-activedescendant", `${list.id}-${chosen}`);
  };
  const take = (word) => {
    area.setRangeText(word, area.selectionStart - begun().length, area.selectionStart, "end");
    close();
    area.focus();
  };
  area.addEventListener("input", () => {
    const start = begun().toLowerCase();
    const views = new Map();
    for (const [word, label] of words) {
      if (start.length > 1 && word.startsWith(start) && word !== start) views.set(word, [...(views.get(word) ?? []), label]);
    }
    list.replaceChildren(...[...views].slice(0, 8).map(([word, labels], place) => {
      const [item, from] = [document.createElement("li"), document.createElement("span")];
      item.id = `${list.id}-${place}`;
      item.setAttribute("role", "option");
      from.textContent = labels.slice(0, 3).join(", ");
      item.append(word, from);
      item.addEventListener("mousedown", (event) => { event.preventDefault(); take(word); });
      return item;
    }));
    chosen = 0;
    list.hidden = !views.size;
    if (views.size) mark(); else close();
  });
  area.addEventListener("keydown", (event) => {
    if (list.hidden) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) chosen = (chosen + step + list.children.length) % list.children.length;
    if (step) mark();
    else if (event.key === "Enter") take(list.children[chosen].firstChild.textContent);
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
  });
  area.addEventListener("blur", close);
}
