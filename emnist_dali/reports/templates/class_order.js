// A radio button's value is an order of the classes. Plotly's own `categoryarray` would leave a heat map's customdata
// where it was.
document.addEventListener("change", event => {
  const order = JSON.parse(event.target.value)
  const plot = event.target.closest(".ordered").querySelector(".js-plotly-plot")
  plot.original ??= plot.data.map(trace => ({...trace}))
  const sorted = values => order.map(i => Array.isArray(values[i]) ? order.map(j => values[i][j]) : values[i])
  const update = {}
  for (const name of ["x", "y", "z", "customdata"])
    if (name in plot.data[0]) update[name] = plot.original.map(trace => sorted(trace[name]))
  Plotly.restyle(plot, update)
})
