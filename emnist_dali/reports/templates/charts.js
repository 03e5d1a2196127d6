// A finger scrolls the page; zooming is left to the buttons above a chart.
if (matchMedia("(pointer: coarse)").matches)
  for (const plot of document.querySelectorAll(".js-plotly-plot")) Plotly.relayout(plot, {dragmode: false})
// A chart in <details> learns its width only once it is opened.
document.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")), true)
