// The contrast of every text of the page against what is behind it, by the formula of WCAG 2, and of the bands of
// the charts against their neighbours.
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => {
    const [r, g, b] = rgba(color).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    for (let here = element; here; here = here.parentElement) {
      const color = getComputedStyle(here).backgroundColor;
      if (rgba(color)[3] > 0) {
        return color;
      }
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim() !== "");
    if (!own || element.tagName === "SCRIPT" || !element.checkVisibility()) {
      continue;
    }
    const style = getComputedStyle(element);
    const drawn = element.closest("svg") !== null;
    // Names in bands have a rim of the page's colour around them.
    const color = drawn ? style.fill : style.color;
    const ground = drawn ? getComputedStyle(document.body).backgroundColor : behind(element);
    texts.push({ text: element.textContent.slice(0, 40), color, ground, contrast: contrast(color, ground) });
  }
  const fill = (key) => getComputedStyle(document.querySelector(`rect.fill-${key}`)).fill;
  const keys = ["inputs", "parameters", "optimizer", "saved-linear", "saved-other", "gradients", "temporaries"];
  const bands = keys.slice(1).map((key, place) => contrast(fill(key), fill(keys[place])));
  return { texts, bands, ground: getComputedStyle(document.body).backgroundColor };
}
