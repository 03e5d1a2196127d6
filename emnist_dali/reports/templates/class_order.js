// A radio button's value is an order of the classes: marks and labels move to their class's place.
document.addEventListener("change", event => {
  const places = []
  JSON.parse(event.target.value).forEach((label, place) => { places[label] = place })
  const form = event.target.closest(".ordered")
  for (const mark of form.querySelectorAll("svg .class")) {
    mark.classes ??= [mark.getAttribute("x"), mark.getAttribute("y")]
    mark.setAttribute("x", places[mark.classes[0]])
    if (mark.localName === "rect") mark.setAttribute("y", places[mark.classes[1]])
  }
  for (const labels of form.querySelectorAll(".labels"))
    [...labels.children].forEach((label, i) => label.style.setProperty("--place", places[i]))
})
