'use strict';
const dom = {
  html: (tag, parent, name = '', text = '') => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    node.textContent = text;
    return parent.appendChild(node);
  },
  svg: (tag, parent, attributes = {}, text = '') => {
    const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    node.textContent = text;
    return parent.appendChild(node);
  },
  // What the page embeds under a name; null if nothing.
  data: (name) => {
    const source = document.getElementById(name);
    return source && JSON.parse(source.textContent);
  },
};
