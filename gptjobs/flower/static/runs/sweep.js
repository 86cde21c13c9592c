/* A sweep: its trials as parallel coordinates and as a table, and its verdict. */

import {address, ago, badge, count, every, get, make, number, put, say, table} from './page.js';

const MOST_COMPARED = 8;
const page = document.getElementById('sweep'), by = name => document.getElementById(name);
const WIDTH = 1000, HEIGHT = 300, TOP = 34, FOOT = 26, SIDE = 90;
const STATES = {'going on': 'running', stopped: 'paused'};

function drawn(name, attributes, ...children) {
    const made = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) {
        made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
}

function parallel({axes, lines}) {
    if (lines.length < 1) {
        put(by('parallel'), make('p', {class: 'runs-empty'}, 'no trial has a validation loss yet'));
        return;
    }
    const across = place => SIDE + place * (WIDTH - 2 * SIDE) / Math.max(1, axes.length - 1);
    const up = height => HEIGHT - FOOT - Math.max(-0.08, height) * (HEIGHT - TOP - FOOT) * 0.96 - 8;
    const picture = drawn('svg', {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': 'Parallel coordinates'});
    axes.forEach((axis, place) => {
        const x = across(place);
        picture.append(drawn('line', {x1: x, x2: x, y1: TOP - 4, y2: HEIGHT - FOOT + 8, class: 'runs-axis'}),
            drawn('text', {x, y: 18, class: 'runs-axis-name'}, axis.name === 'val_loss' ? 'validation loss' : axis.name));
    });
    const losses = lines.map(line => line.heights[line.heights.length - 1]);
    const order = losses.map((loss, index) => index).sort((one, other) => losses[other] - losses[one]);
    for (const index of order) { // the best is drawn last
        const line = lines[index];
        const path = drawn('path', {
            class: 'runs-line', d: 'M' + line.heights.map((height, place) => across(place) + ' ' + up(height)).join('L'),
            'stroke-opacity': (1 - 0.75 * losses[index]).toFixed(3),
            stroke: `color-mix(in oklab, var(--runs-best) ${Math.round(100 - 100 * losses[index])}%, var(--runs-worst))`
        });
        const words = 'trial ' + line.trial + (line.rank ? ', rank ' + line.rank : '');
        path.append(drawn('title', {}, words));
        path.addEventListener('mouseenter', () => say(by('hovered'), words));
        path.addEventListener('mouseleave', () => say(by('hovered'), ''));
        path.addEventListener('click', () => { location.href = address('/runs/' + encodeURIComponent(line.job)); });
        picture.append(path);
    }
    axes.forEach((axis, place) => {
        for (const tick of axis.ticks) {
            const last = place === axes.length - 1;
            picture.append(drawn('text', {
                x: across(place) + (last ? 8 : -8), y: up(tick.height) + 4, class: last ? 'runs-tick' : 'runs-tick runs-tick-left'
            }, tick.words));
        }
    });
    const drawnBefore = by('parallel').firstElementChild;
    if (!drawnBefore || drawnBefore.outerHTML !== picture.outerHTML) {
        by('parallel').replaceChildren(picture);
    }
}

every(5000, async () => {
    const found = await get('/runs/sweeps/' + encodeURIComponent(page.dataset.sweep) + '/data');
    badge(by('state'), STATES[found.state] || found.state);
    say(by('state'), found.state);
    say(by('sub'), found.id + ' · ' + found.ended + ' of ' + found.trials + ' trials have ended · ' + found.searched.join(', ') +
        ' · submitted ' + ago(found.submitted_at) + (found.from ? ' · from ' + found.from : ''));
    parallel(found);
    by('verdict-card').hidden = !found.verdict.length;
    put(by('verdict'), ...found.verdict.map(each => make('li', {}, each)));
    say(by('basis'), found.basis || '');
    put(by('trials'), table(['#Rank', '#Trial', ...found.names.map(each => '#' + each), 'State', '#Tokens', '#Val loss', '#Context'],
        found.rows.map(row => [row.rank === null ? '–' : String(row.rank),
            row.job ? make('a', {href: address('/runs/' + encodeURIComponent(row.job))}, String(row.trial)) : String(row.trial),
            ...row.params, row.why && row.why !== row.state ? row.state + ', not ranked: ' + row.why : row.state,
            count(row.tokens), number(row.val_loss, 4), row.eval_context === null ? '–' : String(row.eval_context)])));
    const best = found.rows.filter(row => row.job && row.val_loss !== null).slice(0, MOST_COMPARED).map(row => row.job);
    by('compare').hidden = best.length < 2;
    by('compare').href = address('/runs/compare?jobs=' + best.map(encodeURIComponent).join(','));
    return found.state !== 'finished';
});
