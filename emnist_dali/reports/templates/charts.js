// What a chart's mark tells, beside the mark, for a mouse or a finger.
const tip = document.body.appendChild(Object.assign(document.createElement("div"), {id: "tip", hidden: true}))
function told(mark) {
  if (mark.dataset.tip) return mark.dataset.tip
  const matrix = mark.ownerSVGElement, frame = matrix.parentNode
  const [x, y] = (mark.classes ?? [mark.getAttribute("x"), mark.getAttribute("y")]).map(Number)
  const name = (axis, i) => frame.querySelectorAll(`.${axis} span`)[i].textContent
  const images = Number(mark.dataset.images), share = 100 * images / JSON.parse(matrix.dataset.images)[y]
  return `true ${name("y", y)}, predicted ${name("x", x)}\n${images.toLocaleString("en")} ${images === 1 ? "image" : "images"}, ${share.toFixed(2)} %`
}
function tell(event) {
  const mark = event.target.closest("[data-tip], rect[data-images]")
  tip.hidden = !mark
  if (!mark) return
  tip.textContent = told(mark)
  const box = mark.getBoundingClientRect(), {offsetWidth: width, offsetHeight: height} = tip
  const left = box.left + box.width / 2 - width / 2
  tip.style.left = `${Math.max(4, Math.min(left, document.documentElement.clientWidth - width - 4))}px`
  tip.style.top = `${box.top - height - 6 < 4 ? Math.min(box.bottom + 6, innerHeight - height - 4) : box.top - height - 6}px`
}
for (const kind of ["pointerover", "pointermove"]) document.addEventListener(kind, tell)
document.addEventListener("scroll", () => { tip.hidden = true }, true)
