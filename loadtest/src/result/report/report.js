"use strict";
// Shows what lies under the pointer. The page is whole without it.
(() => {
  const tip = document.getElementById("tip");
  for (const figure of document.querySelectorAll("figure.chart")) {
    const series = JSON.parse(figure.dataset.points).filter((s) => s.points.length);
    const svg = figure.querySelector("svg");
    const cursor = figure.querySelector(".cursor");
    const nearest = (points, x) =>
      points.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));
    const show = (event) => {
      if (!series.length) return;
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const found = series.map((s) => ({ ...s, point: nearest(s.points, at.x) }));
      const lead = found.reduce((a, b) =>
        Math.abs(b.point[0] - at.x) < Math.abs(a.point[0] - at.x) ? b : a).point;
      tip.replaceChildren();
      const head = document.createElement("b");
      head.textContent = lead[2];
      tip.append(head);
      for (const s of found.filter((s) => Math.abs(s.point[0] - lead[0]) < 8)) {
        const row = document.createElement("div");
        const key = document.createElement("i");
        key.className = s.class;
        row.append(key, `${s.name ? s.name + "  " : ""}${s.point[3]}`);
        tip.append(row);
      }
      cursor.setAttribute("x1", lead[0]);
      cursor.setAttribute("x2", lead[0]);
      cursor.style.opacity = 1;
      tip.style.display = "block";
      const left = Math.min(event.pageX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
      tip.style.left = `${left}px`;
      tip.style.top = `${event.pageY + 14}px`;
    };
    const hide = () => {
      tip.style.display = "none";
      cursor.style.opacity = 0;
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerleave", hide);
  }
  document.documentElement.dataset.ready = document.querySelectorAll("figure.chart").length;
})();
