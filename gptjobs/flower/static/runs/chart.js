/* Curves by uPlot, in the colours of the page: over steps, tokens or time, with alerts and checkpoints marked. */

import {duration, make, say, short} from './page.js';

export const AXES = [['step', 'Steps'], ['tokens', 'Tokens'], ['time', 'Time']];
const NEAR = 8; // pixels within which the cursor is at a mark
const WIDE = 600;
const MOST_DOTS = 60;

function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function onAxis(axis, value) {
    return value === null || value === undefined ? '–' : axis === 'time' ? duration(value) : short(value);
}

/* Marks are drawn over the curves: alerts as dashed lines, later attempts as dotted ones, checkpoints at the foot. */
function drawMarks(plot, marks) {
    const {ctx, bbox} = plot, ratio = devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.lineWidth = ratio;
    const shown = marks.filter(each => each.kind === 'checkpoint' && each.x >= plot.scales.x.min && each.x <= plot.scales.x.max);
    const size = Math.max(1.5 * ratio, Math.min(5 * ratio, bbox.width / shown.length / 3)); // many stand beside each other
    for (const mark of marks) {
        const x = Math.round(plot.valToPos(mark.x, 'x', true)) + 0.5;
        if (mark.kind === 'checkpoint') {
            const foot = bbox.top + bbox.height;
            ctx.fillStyle = colour('--runs-checkpoint');
            ctx.beginPath();
            ctx.moveTo(x - size, foot);
            ctx.lineTo(x + size, foot);
            ctx.lineTo(x, foot - 1.6 * size);
            ctx.fill();
            continue;
        }
        ctx.strokeStyle = colour(mark.kind === 'alert' ? '--flower-danger' : '--flower-text-muted');
        ctx.setLineDash(mark.kind === 'alert' ? [6 * ratio, 4 * ratio] : [2 * ratio, 4 * ratio]);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
    }
    ctx.restore();
}

function nearest(plot, marks) {
    const {left} = plot.cursor;
    const found = left < 0 ? [] : marks
        .map(mark => [Math.abs(plot.valToPos(mark.x, 'x') - left), mark])
        .filter(([distance]) => distance <= NEAR)
        .sort((one, other) => one[0] - other[0] || (one[1].kind === 'alert' ? -1 : 1));
    return found.length ? found[0][1].words : '';
}

function hasFew(values) {
    return values.reduce((sum, each) => sum + (each !== null && each !== undefined), 0) <= MOST_DOTS;
}

export class Chart {
    /* `series`: {label, colour (a variable of the style), dots, spans, width, dash}; `say` puts a value into words. */
    constructor(place, {title, series, height, words, sync}) {
        Object.assign(this, {place, title, series, height, words, sync, log: false, marks: [], axis: 'step', plot: null});
        this.head = make('h3', {class: 'runs-chart-title'}, title);
        this.box = make('div', {class: 'runs-chart'});
        this.note = make('p', {class: 'runs-note'});
        place.append(this.head, this.box, this.note);
        new ResizeObserver(() => this.plot && this.plot.setSize(this.size())).observe(this.box);
        new MutationObserver(() => this.plot && this.build(this.data))
            .observe(document.documentElement, {attributeFilter: ['data-bs-theme']});
    }

    size() {
        return {width: Math.max(200, this.box.clientWidth), height: this.height};
    }

    options() {
        const axis = {
            stroke: colour('--flower-text-muted'), font: '12px system-ui, sans-serif',
            grid: {stroke: colour('--bs-border-color'), width: 1}, ticks: {stroke: colour('--bs-border-color'), width: 1}
        };
        const narrow = this.box.clientWidth < WIDE;
        return {
            ...this.size(),
            scales: {x: {time: false}, y: this.log ? {distr: 3} : {}},
            cursor: {
                sync: this.sync ? {key: this.sync} : undefined, points: {size: 7},
                drag: {x: true, y: false}
            },
            legend: {live: true},
            axes: [
                {...axis, space: narrow ? 70 : 90, values: (plot, ticks) => ticks.map(each => onAxis(this.axis, each))},
                {...axis, size: 58, values: (plot, ticks) => ticks.map(each => each === null ? '' : this.words(each, true))}
            ],
            series: [
                {label: {step: 'Step', tokens: 'Tokens', time: 'Time'}[this.axis],
                    value: (plot, value) => this.axis === 'step' && value !== null ? String(value) : onAxis(this.axis, value)},
                ...this.series.map(each => ({
                    label: each.label, stroke: colour(each.colour), width: each.width || 1.5, spanGaps: Boolean(each.spans),
                    dash: each.dash, points: {
                        show: (plot, index) => Boolean(each.dots) && hasFew(plot.data[index]), size: 6, fill: colour(each.colour)
                    },
                    value: (plot, value) => value === null || value === undefined ? '–' : this.words(value, false)
                }))
            ],
            hooks: {
                draw: [plot => drawMarks(plot, this.marks)],
                setCursor: [plot => say(this.note, nearest(plot, this.marks))]
            }
        };
    }

    build(data) {
        if (this.plot) {
            this.plot.destroy();
        }
        this.data = data;
        this.plot = new uPlot(this.options(), data, this.box);
        this.shape = JSON.stringify([this.axis, this.series]);
    }

    setLog(log) {
        this.log = log;
        if (this.plot) {
            this.build(this.data);
        }
    }

    /* What is zoomed into stays so. */
    update(data, {axis, marks, series}) {
        const zoomed = this.plot && this.axis === axis && this.isZoomed();
        Object.assign(this, {axis, marks: marks || [], series: series || this.series});
        this.box.dataset.points = data[0].length;
        if (!this.plot || this.shape !== JSON.stringify([this.axis, this.series])) {
            this.build(data);
            return;
        }
        this.data = data;
        this.plot.setData(data, !zoomed);
        if (zoomed) {
            this.plot.redraw();
        }
    }

    isZoomed() {
        const [xs] = this.data, {min, max} = this.plot.scales.x;
        return xs.length > 1 && (min > xs[0] || max < xs[xs.length - 1]);
    }
}
