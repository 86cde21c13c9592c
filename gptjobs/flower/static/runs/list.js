/* All jobs: a page of them, patched in place every two seconds. */

import {
    address, ago, badge, bar, count, duration, every, get, make, number, remember, remembered, say, short, show
} from './page.js';

const REFRESH_MS = 2000, MOST_COMPARED = 8;
const STATES = ['running', 'queued', 'paused', 'finished', 'failed', 'diverged', 'cancelled'];
const TURNED = ['name', 'state', 'device', 'eta_s', 'train_loss', 'val_loss']; // the lowest is first asked for
const COLUMNS = [
    ['chosen', ''], ['name', 'Job'], ['state', 'State'], ['step', 'Progress'], ['train_loss', 'Loss'],
    ['val_loss', 'Val loss'], ['tokens_per_s', 'Tokens/s'], ['eta_s', 'Left'], ['device', 'Device'],
    ['alerts', 'Alerts'], ['seen_at', 'Seen']
];
const NUMBERS = ['train_loss', 'val_loss', 'tokens_per_s', 'eta_s', 'alerts', 'seen_at'];

const asked = {
    q: remembered('q', ''), state: remembered('state', ''), by: remembered('by', 'submitted_at'),
    order: remembered('order', 'desc'), page: remembered('page', '1')
};
const chosen = new Set();
const rows = new Map();
const body = document.querySelector('#jobs tbody');

function heading() {
    const cells = COLUMNS.map(([name, words]) => {
        if (name === 'chosen') {
            return make('th', {class: 'runs-chosen'}, make('span', {class: 'visually-hidden'}, 'Compare'));
        }
        return make('th', {'data-column': name, class: NUMBERS.includes(name) ? 'job-number' : null, scope: 'col'},
            make('button', {type: 'button', class: 'runs-sort', onclick: () => sort(name)}, words));
    });
    document.querySelector('#jobs thead').append(make('tr', {}, ...cells));
}

function sort(name) {
    const first = TURNED.includes(name) ? 'asc' : 'desc';
    if (asked.by !== name) {
        Object.assign(asked, {by: name, order: first});
    } else if (asked.order === first) {
        asked.order = first === 'asc' ? 'desc' : 'asc';
    } else {
        Object.assign(asked, {by: 'submitted_at', order: 'desc'});
    }
    change({page: '1'});
}

function change(values) {
    Object.assign(asked, values);
    remember({...asked, page: asked.page === '1' ? '' : asked.page,
        by: asked.by === 'submitted_at' ? '' : asked.by, order: asked.by === 'submitted_at' ? '' : asked.order});
    refresh();
}

function newRow(job) {
    const cells = {};
    const row = make('tr', {'data-job': job.id});
    for (const [name, words] of COLUMNS) {
        cells[name] = make('td', {'data-label': words, class: (NUMBERS.includes(name) ? 'job-number ' : '') + 'runs-' + name});
        row.append(cells[name]);
    }
    const box = make('input', {type: 'checkbox', class: 'form-check-input', 'aria-label': 'Compare ' + (job.name || job.id),
        onchange: () => choose(job.id, box)});
    box.checked = chosen.has(job.id);
    cells.chosen.append(box);
    cells.link = make('a', {href: address('/runs/' + encodeURIComponent(job.id)), title: job.id});
    cells.under = make('div', {class: 'job-state'});
    cells.name.append(cells.link, cells.under);
    cells.badge = make('span');
    cells.state.append(cells.badge);
    cells.bar = make('div', {class: 'job-bar'}, make('div'), make('span'));
    cells.step.append(cells.bar);
    return {row, cells};
}

function fill({row, cells}, job) {
    say(cells.link, job.name || job.id);
    say(cells.under, job.sweep && job.trial !== null ? 'trial ' + job.trial : job.name ? job.id : '');
    badge(cells.badge, job.state);
    cells.state.title = job.why || '';
    bar(cells.bar, job);
    cells.bar.hidden = job.step === null && !job.stage;
    say(cells.train_loss, number(job.train_loss, 4));
    say(cells.val_loss, number(job.val_loss, 4));
    say(cells.tokens_per_s, count(job.tokens_per_s));
    say(cells.eta_s, duration(job.eta_s));
    say(cells.device, job.device);
    say(cells.alerts, job.alerts ? '⚠ ' + short(job.alerts) : '');
    cells.alerts.title = job.alert || '';
    cells.alerts.classList.toggle('runs-holds', Boolean(job.alert));
    say(cells.seen_at, ago(job.seen_at));
    cells.seen_at.title = job.worker || '';
    row.classList.toggle('runs-on-record', !job.is_live);
}

function choose(id, box) {
    if (box.checked && chosen.size >= MOST_COMPARED) {
        box.checked = false;
        return;
    }
    if (box.checked) {
        chosen.add(id);
    } else {
        chosen.delete(id);
    }
    const link = document.getElementById('compare');
    link.classList.toggle('disabled', chosen.size < 2);
    link.setAttribute('aria-disabled', String(chosen.size < 2));
    link.href = address('/runs/compare?jobs=' + [...chosen].map(encodeURIComponent).join(','));
    say(link, chosen.size ? 'Compare ' + chosen.size : 'Compare');
}

function patch(jobs) {
    const there = new Set(jobs.map(job => job.id));
    for (const [id, made] of rows) {
        if (!there.has(id)) {
            made.row.remove();
            rows.delete(id);
        }
    }
    jobs.forEach((job, index) => {
        if (!rows.has(job.id)) {
            rows.set(job.id, newRow(job));
        }
        const made = rows.get(job.id);
        fill(made, job);
        if (body.children[index] !== made.row) {
            body.insertBefore(made.row, body.children[index] || null);
        }
    });
}

function states(counts) {
    const place = document.getElementById('states');
    const all = Object.values(counts).reduce((sum, each) => sum + each, 0);
    const names = ['', ...STATES, ...Object.keys(counts).filter(each => !STATES.includes(each))];
    for (const name of names) {
        let button = [...place.children].find(each => each.dataset.state === name);
        if (!button) {
            button = make('button', {type: 'button', class: 'task-state-filter', 'data-state': name,
                onclick: () => change({state: name, page: '1'})});
            place.append(button);
        }
        const here = name ? counts[name] || 0 : all;
        say(button, (name || 'all') + ' ' + here.toLocaleString('en-US'));
        button.hidden = Boolean(name) && !here && asked.state !== name;
        button.classList.toggle('active', asked.state === name);
        button.setAttribute('aria-pressed', String(asked.state === name));
    }
}

async function look() {
    const answer = await get('/runs/data', asked);
    patch(answer.jobs);
    states(answer.counts);
    for (const each of document.querySelectorAll('#jobs th[data-column]')) {
        each.setAttribute('aria-sort', each.dataset.column !== asked.by ? 'none' :
            asked.order === 'asc' ? 'ascending' : 'descending');
    }
    show('trouble', answer.trouble ? answer.trouble + ' – these are the records in the storage root.' : '');
    show('empty', answer.jobs.length ? '' : answer.all ? 'No job is like that.' :
        'No jobs yet: gptjobs submit train --help');
    say(document.getElementById('found'), (answer.found === answer.all ? '' : count(answer.found) + ' of ') +
        count(answer.all) + (answer.all === 1 ? ' job' : ' jobs'));
    say(document.getElementById('sweeps-link'), answer.sweeps ? 'Sweeps ' + answer.sweeps : 'Sweeps');
    say(document.getElementById('page'), answer.page + ' / ' + answer.pages);
    asked.page = String(answer.page);
    document.getElementById('previous').disabled = answer.page <= 1;
    document.getElementById('next').disabled = answer.page >= answer.pages;
    document.querySelector('.runs-pages').hidden = answer.pages === 1;
}

heading();
const search = document.getElementById('search');
search.value = asked.q;
search.addEventListener('input', () => change({q: search.value, page: '1'}));
document.getElementById('previous').addEventListener('click', () => change({page: String(Number(asked.page) - 1)}));
document.getElementById('next').addEventListener('click', () => change({page: String(Number(asked.page) + 1)}));
const refresh = every(REFRESH_MS, look);
