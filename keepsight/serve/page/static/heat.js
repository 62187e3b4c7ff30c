// Draws a word's attention over the picture, in the colours of `keepsight attention`.

// From no attention to the most in this map. Lightness rises all the way, so that the order survives without colours.
const HEAT = [[21, 11, 55], [91, 26, 120], [184, 50, 95], [240, 124, 58], [253, 233, 140]];
const WIDE = 480; // pixels of the canvas, whose largest width in page.css is the same

// The colour of a strength from 0 to 1, between the two nearest of HEAT
function colour(strength) {
  const at = strength * (HEAT.length - 1);
  const low = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[low].map((from, i) => from + (HEAT[low + 1][i] - from) * (at - low));
}

// The two tokens on either side of a pixel, and how far it lies between their centres, from 0 to 1. Beyond the outermost
// centres it is the outermost token.
function between(place, size, count) {
  const at = Math.min(Math.max((place + 0.5) * count / size - 0.5, 0), count - 1);
  const low = Math.min(Math.floor(at), Math.max(count - 2, 0));
  return [low, Math.min(low + 1, count - 1), at - low];
}

/**
 * Draws `maps.words[number]` over the part of the picture that the model saw, and returns in words where it is strongest.
 * The part may reach beyond the picture, for models that pad it: what lies outside stays grey.
 */
export function drawHeat(canvas, picture, maps, number) {
  const [left, top, right, bottom] = maps.box;
  // Very long and very tall pictures are squeezed, as in the figures of `keepsight attention`
  const ratio = Math.min(Math.max((bottom - top) / (right - left), 1 / 3), 3);
  canvas.width = WIDE;
  canvas.height = Math.round(WIDE * ratio);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const { width, height } = canvas;
  pen.fillStyle = "#808080";
  pen.fillRect(0, 0, width, height);
  const across = width / (right - left), down = height / (bottom - top);
  // Drawn scenes have 128 pixels a side: their edges stay sharp, as in the picture beside
  pen.imageSmoothingEnabled = picture.naturalWidth > 256;
  pen.drawImage(picture, -left * across, -top * down, picture.naturalWidth * across, picture.naturalHeight * down);
  const [rows, columns] = maps.grid;
  const word = maps.words[number];
  const pixels = pen.getImageData(0, 0, width, height);
  // The server leaves sinks out of this scale, so that their own values may exceed it. The bound is for a map of zeros.
  const largest = Math.max(word.top, 1e-30);
  const value = (row, column) => Math.min(Math.max(word.attention[row][column] / largest, 0), 1);
  // The same for every row, and therefore computed once
  const places = Array.from({ length: width }, (_, x) => between(x, width, columns));
  for (let y = 0; y < height; y++) {
    const [above, below, v] = between(y, height, rows);
    for (let x = 0; x < width; x++) {
      const [before, after, h] = places[x];
      const strength = (value(above, before) * (1 - h) + value(above, after) * h) * (1 - v)
        + (value(below, before) * (1 - h) + value(below, after) * h) * v;
      const heat = colour(strength), opacity = 0.34 + 0.46 * strength;
      const i = 4 * (y * width + x);
      // The picture keeps a quarter of its colour, so that the colours are those of the map. The weights are BT.601's
      const grey = 0.299 * pixels.data[i] + 0.587 * pixels.data[i + 1] + 0.114 * pixels.data[i + 2];
      for (let c = 0; c < 3; c++) {
        const base = 0.25 * pixels.data[i + c] + 0.75 * grey;
        pixels.data[i + c] = base * (1 - opacity) + heat[c] * opacity;
      }
    }
  }
  pen.putImageData(pixels, 0, 0);
  // Rings mark the sinks, white within dark, so that they show on any colour
  for (const [row, column] of maps.sinks) {
    pen.beginPath();
    pen.arc((column + 0.5) * width / columns, (row + 0.5) * height / rows, Math.max(5, width / columns / 3), 0, 2 * Math.PI);
    pen.lineWidth = 5; pen.strokeStyle = "#211f2d"; pen.stroke();
    pen.lineWidth = 2.5; pen.strokeStyle = "#fff"; pen.stroke();
  }
  return strongest(word.attention, maps.sinks);
}

// Says in words where the map is strongest, for readers who cannot see it. Sinks are left out, as in the scale of the map.
function strongest(attention, sinks) {
  let best = -1, place = [0, 0];
  attention.forEach((row, y) => row.forEach((one, x) => {
    if (one > best && !sinks.some(([r, c]) => r === y && c === x)) { best = one; place = [y, x]; }
  }));
  const third = (at, count, names) => names[Math.min(Math.floor(3 * (at + 0.5) / count), 2)];
  const up = third(place[0], attention.length, ["upper", "middle", "lower"]);
  const side = third(place[1], attention[0].length, ["left", "centre", "right"]);
  const where = [up, side].filter((part) => part !== "middle" && part !== "centre").join(" ");
  return where ? `at the ${where}` : "in the middle";
}
