/* Up to eight jobs in one chart, and what they have otherwise. */

import {
    address, choice, count, every, get, make, number, put, rate, remembered, short, show, table
} from './page.js';
import {AXES, Chart} from './chart.js';

const ENDED = ['finished', 'failed', 'diverged', 'cancelled'];
const SERIES = [
    ['val_loss', 'Validation'], ['train_loss', 'Train'], ['learning_rate', 'Learning rate'], ['grad_norm', 'Gradient norm'],
    ['tokens_per_s', 'Tokens/s']
];
const WORDS = {
    val_loss: (value, atAxis) => number(value, atAxis ? 2 : 4), train_loss: (value, atAxis) => number(value, atAxis ? 2 : 4),
    learning_rate: rate, grad_norm: rate, tokens_per_s: (value, atAxis) => atAxis ? short(value) : count(value)
};
const by = name => document.getElementById(name);
let axis = remembered('axis', 'tokens'), series = remembered('series', 'val_loss'), answer = null;

const chart = new Chart(by('chart'), {title: '', height: 420, series: [], words: (value, atAxis) => WORDS[series](value, atAxis)});

function draw() {
    const curves = answer.curves.map(each => each.curve).map(curve => {
        const places = curve.x.map((_, place) => place).filter(place => series !== 'val_loss' || curve.val_loss[place] !== null);
        return [places.map(place => curve.x[place]), places.map(place => curve[series][place])];
    });
    const lines = answer.curves.map(({job}, place) => ({
        label: job.name || job.id, colour: '--runs-line-' + place, spans: true, dots: series === 'val_loss', width: 1.8
    }));
    chart.update(curves.length ? uPlot.join(curves.map(distinct)) : [[]], {axis, series: lines});
}

/* uPlot joins by the places along the axis: of several values at one the last stands. */
function distinct([xs, ys]) {
    const by = new Map(xs.map((x, place) => [x, ys[place]]));
    return [[...by.keys()], [...by.values()]];
}

function differences() {
    const lines = new Map(answer.curves.map(({job}, place) => [job.id, place]));
    const heads = answer.rows.map(row => {
        const dot = make('span', {class: 'runs-dot'});
        dot.style.background = 'var(--runs-line-' + lines.get(row.id) + ')';
        return [dot, make('a', {href: address('/runs/' + encodeURIComponent(row.id))}, row.name)];
    });
    const line = (name, words) => [name, ...answer.rows.map(words)];
    const rows = [
        line('', (row, place) => heads[place]),
        line('validation loss', row => make('strong', {}, number(row.val_loss, 4))), line('at context', row => String(row.context)),
        line('tokens', row => count(row.tokens)), line('step', row => count(row.step)),
        ...answer.names.map((name, place) => line(name, row => row.values[place]))
    ];
    put(by('table'), answer.rows.length ? table(['', ...heads.map(() => '#')], rows, {class: 'tasks-table table mb-0 runs-differences'}) :
        make('p', {class: 'runs-empty'}, 'no job has a validation loss yet'));
}

async function look() {
    try {
        answer = await get('/runs/compare/data', {jobs: remembered('jobs', ''), axis});
    } catch (error) {
        show('trouble', error.message);
        throw error;
    }
    show('trouble', answer.curves.length ? '' : 'Choose jobs in the list of all jobs.');
    draw();
    differences();
    put(by('verdict'), ...(answer.why_not ? [make('li', {}, 'not ranked: ' + answer.why_not)] :
        answer.verdict.map(each => make('li', {}, each))));
    return answer.curves.some(({job}) => !ENDED.includes(job.state));
}

choice('series', 'series', SERIES, series, value => {
    series = value;
    if (answer) {
        chart.plot = chart.plot && (chart.plot.destroy(), null);
        draw();
    }
});
chart.setLog(remembered('scale', '') === 'log');
choice('scales', 'scale', [['', 'Linear'], ['log', 'Log']], remembered('scale', ''), value => chart.setLog(value === 'log'));
choice('axes', 'axis', AXES, axis, value => {
    axis = value;
    again();
});
const again = every(3000, look);
