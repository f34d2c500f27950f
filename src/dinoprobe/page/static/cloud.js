/** Points on a canvas: 50,000 of them are drawn as pixels of one image, a frame in a few ms. */

/**
 * @typedef {{scale: number, x: number, y: number}} Camera
 */

export class Cloud {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    const context = canvas.getContext("2d", { alpha: false });
    if (!context) throw new Error("no canvas");
    this.context = context;
    /** @type {Float32Array} */
    this.points = new Float32Array(0);
    /** @type {Uint32Array} */
    this.colours = new Uint32Array(0);
    /** @type {Camera} */
    this.camera = { scale: 1, x: 0, y: 0 };
    this.background = 0xffffffff;
    /** @type {Uint8Array | null} */
    this.marked = null;
    /** @type {[number, number][]} */
    this.lasso = [];
    /** @type {ImageData | null} */
    this.image = null;
    this.frames = 0;
    this.pending = 0;
  }

  /** Pixels from the middle to a point at 1. */
  get unit() {
    return 0.47 * Math.min(this.canvas.width, this.canvas.height) * this.camera.scale;
  }

  /** @param {number} row @returns {[number, number]} in pixels of the canvas */
  at(row) {
    const { unit, camera, canvas } = this;
    const px = canvas.width / 2 + (this.points[2 * row] - camera.x) * unit;
    return [px, canvas.height / 2 - (this.points[2 * row + 1] - camera.y) * unit];
  }

  /** Draws with the next frame. */
  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.paint();
    });
  }

  paint() {
    const { width, height } = this.canvas;
    if (!width || !height) return;
    if (!this.image || this.image.width !== width || this.image.height !== height) {
      this.image = this.context.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    const pixels = /** @type {Uint32Array} */ (this.pixels);
    pixels.fill(this.background);
    const { points, colours, marked, unit, camera } = this;
    const left = width / 2 - camera.x * unit;
    const top = height / 2 + camera.y * unit;
    const size = Math.round(this.radius());
    for (let row = 0, i = 0; i < points.length; row++, i += 2) {
      const cx = Math.round(left + points[i] * unit);
      const cy = Math.round(top - points[i + 1] * unit);
      if (!(cx > -size && cx < width + size && cy > -size && cy < height + size)) continue;
      const colour = marked && !marked[row] ? (colours[row] & 0xffffff) | 0x30000000 : colours[row];
      this.disc(pixels, cx, cy, size, colour);
    }
    this.context.putImageData(this.image, 0, 0);
    this.outline();
    this.frames++;
  }

  /** Half the width of a point in pixels. */
  radius() {
    const n = this.points.length / 2 || 1;
    const plain = Math.sqrt((this.canvas.width * this.canvas.height) / n) / 7;
    const least = n > 10000 ? 1 : n > 3000 ? 2 : 3;
    return Math.min(7, Math.max(least, plain) * Math.min(2.5, Math.sqrt(this.camera.scale)));
  }

  /**
   * @param {Uint32Array} pixels
   * @param {number} cx
   * @param {number} cy
   * @param {number} size
   * @param {number} colour ABGR; an alpha below 255 is mixed with the background
   */
  disc(pixels, cx, cy, size, colour) {
    const { width, height } = this.canvas;
    const ink = colour >>> 24 === 255 ? colour : mixed(colour, this.background);
    const reach = size * size + size * 0.6;
    for (let dy = -size; dy <= size; dy++) {
      const y = cy + dy;
      if (y < 0 || y >= height) continue;
      const half = Math.floor(Math.sqrt(Math.max(0, reach - dy * dy)));
      const from = Math.max(0, cx - half);
      const to = Math.min(width - 1, cx + half);
      if (to >= from) pixels.fill(ink, y * width + from, y * width + to + 1);
    }
  }

  outline() {
    if (this.lasso.length < 2) return;
    const { context } = this;
    context.strokeStyle = "#1f53c4";
    context.lineWidth = 2;
    context.beginPath();
    this.lasso.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    context.stroke();
  }

  /** The row nearest to a place, within some pixels; -1 for none.
   * @param {number} x
   * @param {number} y
   */
  nearest(x, y, within = 12) {
    let best = -1;
    let distance = within * within;
    for (let row = 0; row < this.points.length / 2; row++) {
      const [px, py] = this.at(row);
      const found = (px - x) ** 2 + (py - y) ** 2;
      if (found < distance) [best, distance] = [row, found];
    }
    return best;
  }

  /** Rows within the lasso. */
  within() {
    const found = [];
    for (let row = 0; row < this.points.length / 2; row++) {
      if (inside(this.at(row), this.lasso)) found.push(row);
    }
    return found;
  }

  /**
   * @param {number} factor
   * @param {number} x pixels that stay where they are
   * @param {number} y
   */
  zoom(factor, x, y) {
    const before = this.unit;
    this.camera.scale = Math.min(200, Math.max(0.5, this.camera.scale * factor));
    const shift = 1 / before - 1 / this.unit;
    this.camera.x += (x - this.canvas.width / 2) * shift;
    this.camera.y -= (y - this.canvas.height / 2) * shift;
    this.draw();
  }

  /** @param {number} dx pixels @param {number} dy pixels */
  pan(dx, dy) {
    this.camera.x -= dx / this.unit;
    this.camera.y += dy / this.unit;
    this.draw();
  }
}

/** @param {[number, number]} point @param {[number, number][]} polygon */
export function inside([x, y], polygon) {
  let found = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [ax, ay] = polygon[i];
    const [bx, by] = polygon[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) found = !found;
  }
  return found;
}

/** @param {number} colour @param {number} ground */
function mixed(colour, ground) {
  const share = (colour >>> 24) / 255;
  /** @param {number} shift */
  const part = (shift) => Math.round(((colour >>> shift) & 255) * share + ((ground >>> shift) & 255) * (1 - share)) << shift;
  return (0xff000000 | part(0) | part(8) | part(16)) >>> 0;
}

/** A CSS colour as the canvas has it in memory. @param {string} css */
export function abgr(css) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) return 0xff000000;
  context.fillStyle = css;
  context.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
  return ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
}
