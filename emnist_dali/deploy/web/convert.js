// Converts a picture of one character to an image in EMNIST's style, pixel for pixel as emnist_style.py, ink.py and
// segment.py do: functions and constants have their names, and reasons stand there. Below follows what those use of
// Pillow, scipy.ndimage and numpy. What is float32 there is a Float32Array here, or goes through fround.
//
// A grid is { data, width, height }, row by row; a box is [left, top, right, bottom] in pixels.
globalThis.findGlyph = (() => {
"use strict"
const { abs, ceil, exp, floor, fround, max, min, sqrt, trunc } = Math

// emnist_style.py
const SIZE = 28
const BORDER = 2
const SEVERAL = "it shows several characters"
const SEARCH_SIZE = 256
const GLYPH_SIZE = 96
const INK_THRESHOLD = 0.05
const WHOLE = 0.5
const APART = 0.05
const STROKE_THRESHOLD = 0.25
const EDGE = 5
// ink.py
const NOISE_SIGMAS = 4
const MIN_CONTRAST = 16
const FAINTEST_RULE = 0.1
// segment.py
const MAX_PIECES = 2500
const STROKE = 0.3
const CORE = 0.5

/**
 * @param {{ data: Uint8ClampedArray, width: number, height: number }} picture RGBA, as canvas' ImageData
 * @returns {{ image: Uint8Array, warning: string | null } | null} 28×28, light on dark; null if there is no ink
 */
function findGlyph(picture) {
  const grey = flattenToGrey(picture)
  const small = thumbnail(grey, SEARCH_SIZE)
  const longer = max(small.width, small.height)
  const reach = max(3, floor(min(small.width, small.height) / 2))
  const ink = extractInk(small, longer / SEARCH_SIZE, reach)
  if (!ink) return null
  const unruled = longer > 2 * SIZE ? withoutRules(ink, ruleThickness(small)) : ink
  const ruled = unruled.data.some((value, i) => value !== ink.data[i])
  const glyph = onlyGlyph(unruled)
  if (!glyph) return null
  const scales = [grey.width / small.width, grey.height / small.height]
  const image = convert(grey, boundingBox(glyph).map((side, i) => side * scales[i % 2]), ruled)
  return image && { image, warning: warning(glyph) }
}

// The second half of find_glyph: what is in `box` of the grey picture → 28×28, or null.
function convert(grey, box, ruled) {
  const length = longerSide(box), whole = [0, 0, grey.width, grey.height]
  const [crop, near] = [ruled ? 1 : 0.2, 0.2].map(margin => box.map((side, i) => {
    const moved = side + margin * length * (i < 2 ? -1 : 1)
    return round(min(max(moved, 0), whole[2 + i % 2]))
  }))
  const scale = min(1, GLYPH_SIZE / length)
  const [width, height] = [0, 1].map(i => max(round(scale * (crop[2 + i] - crop[i])), 1))
  let ink = extractInk(resize(grey, width, height, crop, BICUBIC), scale * length / GLYPH_SIZE)
  if (ink && ruled) {
    const part = near.map((side, i) => round((side - crop[i % 2]) * scale))
    ink = cropped(withoutRules(ink, ruleThickness(ink)), part)
  }
  const glyph = ink && onlyGlyph(ink)
  return glyph && frame(glyph, whole.map((side, i) => (side - near[i % 2]) * scale))
}

function warning(ink) {
  const groups = stacked(piecesOf(ink))
  const longest = max(0, ...groups.map(longerSide))
  const large = groups.filter(group => longerSide(group) > WHOLE * longest)
  if (large.some((after, i) => i && after[0] - large[i - 1][2] > APART * longest)) return SEVERAL
  const strokes = above(ink, 0.5)
  if (onRim(strokes).some(i => strokes.data[i])) {
    return "its ink reaches the edge of the picture; leave a margin"
  }
  return null
}

function ruleThickness({ width, height }) {
  return max(2, round(0.03 * max(width, height)))
}

function flattenToGrey({ data, width, height }) {
  const grey = new Uint8Array(width * height)
  let transparent = false, count = 0, sum = 0
  for (let i = 0, at = 0; i < grey.length; i++, at += 4) {
    grey[i] = luminance(data[at], data[at + 1], data[at + 2])
    if (data[at + 3] < 255) transparent = true
    if (data[at + 3]) {
      count++
      sum += grey[i]
    }
  }
  if (transparent) {
    const background = count && sum / count < 127.5 ? 255 : 0
    for (let i = 0, at = 0; i < grey.length; i++, at += 4) {
      const composed = channel => composite(data[at + channel], data[at + 3], background)
      grey[i] = luminance(composed(0), composed(1), composed(2))
    }
  }
  return { data: grey, width, height }
}

function onlyGlyph(ink) {
  const { labels, n } = label(above(ink, STROKE_THRESHOLD))
  const regions = measure(ink, labels, n)
  const masses = regions.map(({ mass }) => mass)
  const cut = new Set(onRim(ink).map(i => labels[i]))
  const whole = max(0, ...masses.filter((_, i) => !cut.has(i)))
  if (whole > 0.1 * greatest(masses)) for (const i of cut) masses[i] = 0
  const least = 0.02 * greatest(masses)
  const chosen = regions.map(({ peak }, i) => peak > 0.5 && masses[i] > least)
  if (!chosen.includes(true)) return null
  const glyph = emptyGrid(Uint8Array, ink.width, ink.height), mask = above(ink, INK_THRESHOLD).data
  labels.forEach((region, i) => {
    if (chosen[region]) glyph.data[i] = mask[i] = 1
  })
  const kept = binaryDilation(binaryDilation(glyph, EDGE, mask), 2)
  return { ...ink, data: ink.data.map((value, i) => kept.data[i] ? value : 0) }
}

function boundingBox(ink) {
  const { data, width, height } = above(ink, INK_THRESHOLD)
  const box = [width, height, 0, 0]
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) if (data[i]) extend(box, x, y)
  }
  return box
}

function frame(ink, picture) {
  const box = boundingBox(ink)
  const half = longerSide(box) / 2 * SIZE / (SIZE - 2 * BORDER)
  const centre = [(box[2] + box[0]) / 2, (box[3] + box[1]) / 2]
  let frame = [centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half]
  const length = width(picture), distance = max(...frame.map((side, i) => abs(side - picture[i])))
  if (length === picture[3] - picture[1] && distance <= 1.5 / SIZE * length) frame = picture
  const pad = ceil(half) + 1
  const small = resize(padded(ink, Array(4).fill(pad), zero), SIZE, SIZE, frame.map(side => side + pad), BICUBIC).data
  const most = greatest(small)
  return Uint8Array.from(small, value => min(max(round(fround(fround(255 * value) / most)), 0), 255))
}

// ink.py

function extractInk(grey, sigma, reach) {
  grey = softened({ ...grey, data: Float32Array.from(grey.data) }, sigma)
  const ink = contrastWithPaper(grey, reach ?? max(3, round(0.9 * min(grey.width, grey.height))))
  const rim = rimOf(ink)
  const light = fitRim(ink, rim)
  for (let i = 0; i < light.length; i++) ink.data[i] -= light[i]
  const noise = fround(fround(NOISE_SIGMAS * 1.48) * median(rim.map(i => abs(ink.data[i]))))
  for (let i = 0; i < light.length; i++) ink.data[i] -= noise
  const most = greatest(ink.data)
  if (most < MIN_CONTRAST) return null
  const full = percentile(ink.data.filter(value => value > fround(most / 2)), 98)
  return { ...ink, data: ink.data.map(value => min(max(value / full, 0), 1)) }
}

function contrastWithPaper(grey, side) {
  const lightest = closing(grey, side), darkest = negated(closing(negated(grey), side))
  const contrast = variation(lightest) <= variation(darkest)
    ? (value, i) => 255 * fround(1 - fround(value / max(lightest.data[i], 1)))
    : (value, i) => value - darkest.data[i]
  return { ...grey, data: grey.data.map(contrast) }
}

function variation({ data, width, height }) {
  let sum = 0
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (y) sum += abs(fround(data[i] - data[i - width]))
      if (x) sum += abs(fround(data[i] - data[i - 1]))
    }
  }
  return sum
}

function softened(grey, sigma) {
  return gaussianFilter(grey, sqrt(max(0, sigma ** 2 - edgeSoftness(grey) ** 2)))
}

function edgeSoftness({ data, width, height }) {
  let steepest = 0
  for (let y = 0; y < height - 1; y++) {
    for (let x = 0, i = y * width; x < width - 1; x++, i++) {
      const across = fround(data[i + 1] - data[i]), down = fround(data[i + width] - data[i])
      steepest = max(steepest, across * across + down * down)
    }
  }
  const range = fround(greatest(data) - smallest(data))
  return fround(range / max(fround(sqrt(steepest)), 1)) / sqrt(2 * Math.PI)
}

// Indices of the outer 4 % on each side.
function rimOf({ width, height }) {
  const [across, down] = [width, height].map(side => max(1, round(0.04 * side)))
  const rim = []
  for (let y = 0, i = 0; y < height; y++) {
    const inside = y >= down && y < height - down
    for (let x = 0; x < width; x++, i++) {
      if (!inside || x < across || x >= width - across) rim.push(i)
    }
  }
  return rim
}

function fitRim({ data, width, height }, rim) {
  const xs = linspace(width), ys = linspace(height)
  const terms = [() => 1, x => x, (x, y) => y, (x, y) => x * y, x => x * x, (x, y) => y * y]
  const level = median(rim.map(i => data[i]))
  const deviation = i => abs(fround(data[i] - level))
  const limit = fround(fround(3 * 1.48) * median(rim.map(deviation)))
  const paper = rim.filter(i => deviation(i) <= limit)
  const columns = terms.map(term => paper.map(i => term(xs[i % width], ys[floor(i / width)])))
  const [a, b, c, d, e, f] = lstsq(columns, paper.map(i => data[i]))
  const light = new Float64Array(data.length)
  for (let row = 0, i = 0; row < height; row++) {
    const y = ys[row]
    for (const x of xs) light[i++] = a + b * x + c * y + d * x * y + e * x * x + f * y * y
  }
  return light
}

function withoutRules(ink, thickness) {
  for (let turn = 0; turn < 2; turn++) ink = transposed(withoutHorizontal(ink, thickness, ink.width - 2))
  return ink
}

function withoutHorizontal(ink, thickness, length) {
  const opened = greyOpeningOfColumns(ink, thickness + 1)
  const thin = above({ ...ink, data: ink.data.map((value, i) => value - opened.data[i]) }, FAINTEST_RULE)
  const runs = longRuns(withRowsBeside(above(ink, FAINTEST_RULE)), max(3, round(length / 4)))
  const { labels, n } = label(runs)
  const lines = Array.from({ length: n + 1 }, () => [])
  labels.forEach((line, i) => { if (line && thin.data[i]) lines[line].push(i) })
  const regions = measure(ink, labels, n)
  const rules = lines.filter((line, i) => line.length && width(regions[i].box) >= length)
  if (!rules.length) return ink
  const without = { ...ink, data: ink.data.slice() }
  for (const rule of rules) {
    const covered = fround(fround(1.2) * median(rule.map(i => ink.data[i])))
    for (const i of rule) without.data[i] = max(fround(without.data[i] - covered), 0)
  }
  const mended = greyClosingOfColumns(without, thickness + 4)
  for (const i of rules.flat()) without.data[i] = min(mended.data[i], ink.data[i])
  return without
}

// segment.py: of a piece, only its box and the mass of its ink are needed here.

function piecesOf(ink) {
  const { labels, n } = label(above(ink, STROKE))
  const pieces = measure(ink, labels, n).slice(1)
    .sort((a, b) => b.mass - a.mass).slice(0, MAX_PIECES).filter(({ peak }) => peak > CORE)
  const height = writingHeight(pieces)
  const isWritten = ({ box, mass }) => mass > 0.004 * height ** 2 && longerSide(box) < 6 * height
  return pieces.filter(isWritten).map(({ box }) => box).sort((a, b) => a[0] - b[0])
}

function writingHeight(pieces) {
  const ordered = pieces.map(({ box, mass }) => [longerSide(box), mass]).sort((a, b) => a[0] - b[0])
  const total = ordered.reduce((sum, [, mass]) => sum + mass, 0)
  let below = 0
  for (const [height, mass] of ordered) {
    below += mass
    if (below >= total / 2) return height
  }
  return 0
}

function stacked(line) {
  const groups = []
  for (const piece of line) {
    const group = groups.slice(-2).find(group => {
      const [left, , right] = joined(group)
      const shared = min(right, piece[2]) - max(left, piece[0])
      return shared > 0.5 * min(right - left, width(piece))
    })
    if (group) group.push(piece)
    else groups.push([piece])
  }
  return groups.map(joined).sort((a, b) => a[0] - b[0])
}

function joined(boxes) {
  const outermost = (side, choose) => boxes.map(box => box[side]).reduce((a, b) => choose(a, b))
  return [outermost(0, min), outermost(1, min), outermost(2, max), outermost(3, max)]
}

// Boxes and grids

function width(box) {
  return box[2] - box[0]
}

function longerSide(box) {
  return max(box[2] - box[0], box[3] - box[1])
}

function extend(box, x, y) {
  box[0] = min(box[0], x)
  box[1] = min(box[1], y)
  box[2] = max(box[2], x + 1)
  box[3] = max(box[3], y + 1)
}

function emptyGrid(Type, width, height) {
  return { data: new Type(width * height), width, height }
}

function above({ data, width, height }, threshold) {
  const mask = new Uint8Array(data.length), limit = fround(threshold)
  for (let i = 0; i < data.length; i++) mask[i] = data[i] > limit
  return { data: mask, width, height }
}

// Indices of the outermost pixels.
function onRim({ width, height }) {
  const indices = []
  for (let x = 0; x < width; x++) indices.push(x, (height - 1) * width + x)
  for (let y = 0; y < height; y++) indices.push(y * width, (y + 1) * width - 1)
  return indices
}

function transposed({ data, width, height }) {
  const turned = emptyGrid(data.constructor, height, width)
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) turned.data[x * height + y] = data[i]
  }
  return turned
}

function negated(grid) {
  const data = grid.data.slice()
  for (let i = 0; i < data.length; i++) data[i] = -data[i]
  return { ...grid, data }
}

function cropped(grid, [left, top, right, bottom]) {
  right = min(right, grid.width)
  bottom = min(bottom, grid.height)
  const part = emptyGrid(grid.data.constructor, right - left, bottom - top)
  for (let y = 0; y < part.height; y++) {
    const from = (top + y) * grid.width
    part.data.set(grid.data.subarray(from + left, from + right), y * part.width)
  }
  return part
}

// Pillow

function luminance(red, green, blue) {
  return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16 // ITU-R 601-2
}

// Of a channel over an opaque background, with 7 bits more in between.
function composite(channel, alpha, background) {
  const sum = ((channel * alpha + background * (255 - alpha)) << 7) + (0x80 << 7)
  return ((sum >> 8) + sum >> 8) >> 7
}

// With the filter BOX and a reducing_gap of 2.
function thumbnail(grey, size) {
  const { width, height } = grey
  if (width <= size && height <= size) return grey
  const aspect = width / height
  const [across, down] = aspect <= 1
    ? [nearestSide(size * aspect, n => abs(aspect - n / size)), size]
    : [size, nearestSide(size / aspect, n => n && abs(aspect - size / n))]
  const factors = [trunc(width / across / 2) || 1, trunc(height / down / 2) || 1]
  const box = [0, 0, width / factors[0], height / factors[1]]
  return resize(reduced(grey, ...factors), across, down, box, BOX)
}

function nearestSide(exact, error) {
  const [lower, upper] = [floor(exact), ceil(exact)]
  return max(error(upper) < error(lower) ? upper : lower, 1)
}

// Means of `across` × `down` pixels, of fewer at the right and lower edge.
function reduced({ data, width, height }, across, down) {
  if (across === 1 && down === 1) return { data, width, height }
  const small = emptyGrid(Uint8Array, ceil(width / across), ceil(height / down))
  for (let top = 0, i = 0; top < height; top += down) {
    const bottom = min(top + down, height)
    for (let left = 0; left < width; left += across, i++) {
      const right = min(left + across, width), n = (right - left) * (bottom - top)
      let sum = floor(n / 2)
      for (let y = top; y < bottom; y++) {
        for (let at = y * width + left; at < y * width + right; at++) sum += data[at]
      }
      small.data[i] = floor(sum * trunc(fround(2 ** 32 / (256 * n))) / 2 ** 24)
    }
  }
  return small
}

const BOX = { support: 0.5, weight: x => x > -0.5 && x <= 0.5 ? 1 : 0 }
const BICUBIC = {
  support: 2,
  weight(x) {
    x = abs(x)
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0
  },
}

function resize(grid, width, height, box, filter) {
  const [left, top, right, bottom] = box.map(fround)
  const across = resampling(grid.width, left, right, width, filter)
  const down = resampling(grid.height, top, bottom, height, filter)
  // Since Pillow 13.0; older versions begin with the rows here too, and differ where pixels are clipped in between.
  if (grid.height - height > max(0, 2 * (grid.width - width))) {
    return transposed(resampled(resampled(transposed(grid), down), across))
  }
  const first = down[0].start, last = down.at(-1).start + down.at(-1).weights.length
  const rows = { ...grid, data: grid.data.subarray(first * grid.width, last * grid.width), height: last - first }
  for (const row of down) row.start -= first
  return resampled(resampled(rows, across), down)
}

// For each of `size` pixels, which together cover `from` to `to`: the first one that it is made of, and the weights.
function resampling(length, from, to, size, filter) {
  const scale = fround(to - from) / size, stretch = max(scale, 1), reach = filter.support * stretch
  return Array.from({ length: size }, (_, i) => {
    const centre = from + (i + 0.5) * scale
    const start = max(trunc(centre - reach + 0.5), 0), end = min(trunc(centre + reach + 0.5), length)
    const weight = (_, k) => filter.weight((k + start - centre + 0.5) * (1 / stretch))
    const weights = Float64Array.from({ length: end - start }, weight)
    const total = weights.reduce((sum, weight) => sum + weight, 0)
    return { start, weights: total ? weights.map(weight => weight / total) : weights }
  })
}

// Along the rows; transposed, so that twice is both ways. In fixed point for grids of bytes.
function resampled({ data, width, height }, pixels) {
  const bytes = data instanceof Uint8Array, one = 1 << 22
  const turned = new data.constructor(pixels.length * height)
  pixels.forEach(({ start, weights }, x) => {
    if (bytes) weights = weights.map(weight => trunc(weight * one + (weight < 0 ? -0.5 : 0.5)))
    for (let y = 0; y < height; y++) {
      let sum = bytes ? one / 2 : 0
      for (let k = 0, at = y * width + start; k < weights.length; k++, at++) sum += data[at] * weights[k]
      turned[x * height + y] = bytes ? min(max(sum >> 22, 0), 255) : sum
    }
  })
  return { data: turned, width: height, height: pixels.length }
}

// scipy.ndimage

function gaussianFilter(grid, sigma) {
  if (sigma <= 1e-15) return grid
  const radius = trunc(4 * sigma + 0.5)
  const bell = Array.from({ length: 2 * radius + 1 }, (_, i) => exp(-0.5 / (sigma * sigma) * (i - radius) ** 2))
  const sum = bell.reduce((a, b) => a + b)
  const weights = bell.map(weight => weight / sum)
  return transposed(correlated(correlated(transposed(grid), weights), weights))
}

// Along the rows with symmetrical weights; transposed.
function correlated(grid, weights) {
  const { width, height } = grid, radius = weights.length >> 1
  const { data } = padded(grid, [radius, 0, radius, 0], nearest)
  const turned = new Float32Array(width * height)
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * (width + 2 * radius) + x + radius
      let sum = data[at] * weights[radius]
      for (let k = radius; k > 0; k--) sum += (data[at - k] + data[at + k]) * weights[radius - k]
      turned[x * height + y] = sum
    }
  }
  return { data: turned, width: height, height: width }
}

// Where what is missing beyond an edge is taken from; negative for zeros.
const nearest = (at, length) => min(max(at, 0), length - 1)
const reflect = (at, length) => {
  const place = (at % (2 * length) + 2 * length) % (2 * length)
  return min(place, 2 * length - 1 - place)
}
const zero = (at, length) => at < length ? at : -1

function padded({ data, width, height }, [left, top, right, bottom], missing) {
  const grid = emptyGrid(data.constructor, left + width + right, top + height + bottom)
  const columns = Array.from({ length: grid.width }, (_, x) => missing(x - left, width))
  const margins = [...columns.keys()].filter(x => x < left || x >= left + width)
  for (let y = 0; y < grid.height; y++) {
    const row = missing(y - top, height)
    if (row < 0) continue
    const from = row * width, to = y * grid.width
    grid.data.set(data.subarray(from, from + width), to + left)
    for (const x of margins) if (columns[x] >= 0) grid.data[to + x] = data[from + columns[x]]
  }
  return grid
}

// By a square, of the grid continued beyond its edges; so far that it makes no difference where a square's centre is.
function closing(grid, size) {
  const maximumOfContinued = grid => maximumOfRuns(padded(grid, [size - 1, 0, size - 1, 0], nearest), size)
  const dilated = maximumOfContinued(maximumOfContinued(grid))
  return negated(maximumOfRuns(maximumOfRuns(negated(dilated), size), size))
}

// Of all runs of `size` pixels in a row, by van Herk's algorithm; transposed.
function maximumOfRuns({ data, width, height }, size) {
  const turned = emptyGrid(data.constructor, height, width - size + 1)
  const toEnd = new Float32Array(width) // maxima from here to the end of a block of `size`
  for (let y = 0, row = 0; y < height; y++, row += width) {
    for (let start = 0, at = y; start < width; start += size) {
      const end = min(start + size, width)
      toEnd[end - 1] = data[row + end - 1]
      for (let x = end - 2; x >= start; x--) toEnd[x] = max(data[row + x], toEnd[x + 1])
      let fromStart = data[row + start]
      for (let x = start; x < end; x++) {
        fromStart = max(fromStart, data[row + x])
        if (x < size - 1) continue
        turned.data[at] = max(fromStart, toEnd[x - size + 1])
        at += height
      }
    }
  }
  return turned
}

// Of columns of `size` pixels that start `before` above each pixel.
function maximumOfColumns(grid, size, before, missing) {
  return maximumOfRuns(padded(transposed(grid), [before, 0, size - 1 - before, 0], missing), size)
}

function greyOpeningOfColumns(grid, size) {
  const eroded = negated(maximumOfColumns(negated(grid), size, size >> 1, nearest))
  return maximumOfColumns(eroded, size, size - 1 - (size >> 1), nearest)
}

function greyClosingOfColumns(grid, size) {
  const dilated = maximumOfColumns(grid, size, size - 1 - (size >> 1), reflect)
  return negated(maximumOfColumns(negated(dilated), size, size >> 1, reflect))
}

// binary_dilation by a column of three.
function withRowsBeside({ data, width, height }) {
  return { data: data.map((inked, i) => inked | data[i - width] | data[i + width]), width, height }
}

// binary_opening by a row of `length`.
function longRuns({ data, width, height }, length) {
  const runs = emptyGrid(Uint8Array, width, height)
  for (let start = 0, i = 0; i < data.length; i++) {
    if (i % width === 0 || !data[i]) start = data[i] ? i : i + 1
    const n = i + 1 - start
    if (n >= length) runs.data.fill(1, n > length ? i : start, i + 1)
  }
  return runs
}

// By a cross, where `mask` is set.
function binaryDilation(grid, iterations, mask) {
  const { width, height } = grid
  let { data } = grid
  for (let turn = 0; turn < iterations; turn++) {
    const before = data
    data = before.slice()
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        if (mask && !mask[i]) continue
        data[i] |= before[i - width] | before[i + width] | (x && before[i - 1]) | (x + 1 < width && before[i + 1])
      }
    }
  }
  return { data, width, height }
}

// Connected regions, diagonally too, get the labels 1 to n.
function label({ data, width, height }) {
  const labels = new Int32Array(data.length), open = []
  let n = 0
  const reach = i => {
    if (!data[i] || labels[i]) return
    labels[i] = n
    open.push(i)
  }
  for (let first = 0; first < data.length; first++) {
    if (!data[first] || labels[first]) continue
    n++
    reach(first)
    while (open.length) {
      const i = open.pop(), x = i % width
      for (let near = max(x - 1, 0); near <= min(x + 1, width - 1); near++) {
        for (let at = near + i - x - width; at <= near + i - x + width; at += width) reach(at)
      }
    }
  }
  return { labels, n }
}

// Of each label (0, the rest, is left empty): the sum and the maximum of the ink, and the box around it.
function measure({ data, width, height }, labels, n) {
  const regions = Array.from({ length: n + 1 }, () => ({ mass: 0, peak: -Infinity, box: [width, height, 0, 0] }))
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!labels[i]) continue
      const region = regions[labels[i]]
      region.mass += data[i]
      region.peak = max(region.peak, data[i])
      extend(region.box, x, y)
    }
  }
  return regions
}

// numpy

// Half to even.
function round(value) {
  const whole = floor(value), rest = value - whole
  return rest > 0.5 || rest === 0.5 && whole % 2 ? whole + 1 : whole
}

function greatest(values) {
  let most = -Infinity
  for (let i = 0; i < values.length; i++) most = max(most, values[i])
  return most
}

function smallest(values) {
  let least = Infinity
  for (let i = 0; i < values.length; i++) least = min(least, values[i])
  return least
}

function linspace(n) {
  return Float64Array.from({ length: n }, (_, i) => i && i === n - 1 ? 1 : i * (2 / max(n - 1, 1)) - 1)
}

function dot(a, b) {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i]
  return sum
}

function median(values) {
  const sorted = Float32Array.from(values).sort(), half = values.length >> 1
  return values.length % 2 ? sorted[half] : fround(sorted[half - 1] + sorted[half]) / 2
}

function percentile(values, percent) {
  const sorted = values.slice().sort(), index = percent / 100 * (sorted.length - 1)
  const below = floor(index), share = index - below
  const [lower, upper] = [sorted[below], sorted[min(below + 1, sorted.length - 1)]]
  const difference = fround(upper - lower)
  return share < 0.5
    ? fround(lower + fround(difference * fround(share)))
    : fround(upper - fround(difference * fround(1 - share)))
}

// The shortest x with the least |Ax - b|, by the eigenvectors of AᵀA.
function lstsq(columns, b) {
  const squares = columns.map(column => columns.map(other => dot(column, other)))
  const products = columns.map(column => dot(column, b))
  const { values, vectors } = eigen(squares)
  const least = 1e-12 * greatest(values)
  const x = products.map(() => 0)
  values.forEach((value, k) => {
    if (value <= least) return
    const vector = vectors.map(row => row[k]), share = dot(vector, products) / value
    vector.forEach((part, i) => { x[i] += share * part })
  })
  return x
}

// Of a symmetric matrix, by Jacobi's rotations; vectors are the columns.
function eigen(matrix) {
  const n = matrix.length, a = matrix.map(row => row.slice())
  const vectors = a.map((_, i) => a.map((_, j) => Number(i === j)))
  for (let sweep = 0; sweep < 12; sweep++) {
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        if (!a[p][q]) continue
        const theta = (a[q][q] - a[p][p]) / (2 * a[p][q])
        const t = (theta < 0 ? -1 : 1) / (abs(theta) + sqrt(theta * theta + 1))
        const c = 1 / sqrt(t * t + 1), s = t * c
        const turned = (one, other) => [c * one - s * other, s * one + c * other]
        for (let k = 0; k < n; k++) [a[k][p], a[k][q]] = turned(a[k][p], a[k][q])
        for (let k = 0; k < n; k++) [a[p][k], a[q][k]] = turned(a[p][k], a[q][k])
        for (let k = 0; k < n; k++) [vectors[k][p], vectors[k][q]] = turned(vectors[k][p], vectors[k][q])
      }
    }
  }
  return { values: a.map((row, i) => row[i]), vectors }
}

return findGlyph
})()
