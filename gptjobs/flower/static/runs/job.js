/* A job's page: its numbers and curves every two seconds, what is on record of it every five, until it has ended. */

import {
    address, ago, badge, bar, choice, count, duration, every, get, make, number, post, put, rate, READ_ONLY,
    remembered, say, short, show, table, when
} from './page.js';
import {AXES, Chart} from './chart.js';

const REFRESH_MS = 2000, RECORD_MS = 5000;
const ENDED = ['finished', 'failed', 'diverged', 'cancelled'];
const page = document.getElementById('job'), id = page.dataset.job, path = '/runs/' + encodeURIComponent(id);
const by = name => document.getElementById(name);
let axis = remembered('axis', 'step'), record = null, looksAfterTheEnd = 0;

const charts = {
    loss: new Chart(by('loss'), {
        title: 'Loss, nats a token', height: 320, sync: 'job', words: (value, atAxis) => number(value, atAxis ? 2 : 4),
        series: [
            {label: 'train', colour: '--runs-train'},
            {label: 'validation', colour: '--runs-validation', dots: true, spans: true, width: 2}
        ]
    }),
    learning_rate: small('learning_rate', 'Learning rate', '--runs-rate', rate),
    grad_norm: small('grad_norm', 'Gradient norm', '--runs-norm', rate),
    tokens_per_s: small('tokens_per_s', 'Tokens/s', '--runs-speed', (value, atAxis) => atAxis ? short(value) : count(value))
};

function small(name, title, colour, words) {
    return new Chart(by(name), {title, height: 180, sync: 'job', words, series: [{label: title.toLowerCase(), colour}]});
}

function draw({curve, marks}) {
    charts.loss.update([curve.x, curve.train_loss, curve.val_loss], {axis, marks});
    for (const name of ['learning_rate', 'grad_norm', 'tokens_per_s']) {
        charts[name].update([curve.x, curve[name]], {axis, marks: marks.filter(each => each.kind === 'alert')});
    }
    const kinds = new Set(marks.map(each => each.kind));
    put(by('key'),
        kinds.has('checkpoint') && make('span', {class: 'runs-key-checkpoint'}, '▲ checkpoint'),
        kinds.has('alert') && make('span', {class: 'runs-key-alert'}, '┆ alert'),
        kinds.has('attempt') && make('span', {class: 'runs-key-attempt'}, '┊ a later attempt'),
        'drag to zoom, double-click for all');
}

function card(name, value, under, look) {
    return make('div', {class: 'metric-card ' + (look || '')}, make('p', {class: 'metric-label'}, name),
        make('p', {class: 'metric-value'}, value), make('p', {class: 'runs-sub mb-0'}, under || ' '));
}

function facts(job) {
    badge(by('state'), job.state);
    bar(document.querySelector('.runs-bar'), job);
    put(by('sub'), job.id + ' · ' + job.kind,
        job.sweep && ' · ', job.sweep && make('a', {href: address('/runs/sweeps/' + encodeURIComponent(job.sweep))},
            'sweep, trial ' + job.trial),
        ' · submitted ' + ago(job.submitted_at) + ' · ', make('a', {href: page.dataset.task}, "Celery's task"));
    put(by('metrics'),
        card('Loss', number(job.train_loss, 4), 'train', 'metric-card-active'),
        card('Validation loss', number(job.val_loss, 4), job.eval_context ? 'at context ' + job.eval_context : ''),
        card('Tokens/s', count(job.tokens_per_s), short(job.tokens) + ' tokens so far', 'metric-card-success'),
        card('Left', duration(job.eta_s), 'seen ' + ago(job.seen_at)),
        card('Device', job.device, job.worker || 'no worker yet'),
        card('Learning rate', rate(job.learning_rate), 'gradient norm ' + rate(job.grad_norm)),
        card('Attempt', String(job.attempt), job.is_live ? 'priority ' + job.priority : 'as on record: Redis has it not'));
    const words = [job.why, job.alert, record && record.hint && 'hint: ' + record.hint].filter(Boolean);
    show('alert', words.join(' · '));
    by('alert').classList.toggle('runs-mild', !job.alert && !['failed', 'diverged'].includes(job.state));
}

const REQUESTS = {
    pause: ['Pause', 'btn-outline-secondary', ['queued', 'running']],
    unpause: ['Unpause', 'btn-primary', ['paused', 'pausing']],
    cancel: ['Cancel', 'btn-danger', ['queued', 'running', 'pausing', 'paused']]
};

function actions(job) {
    const wanted = READ_ONLY ? [] : Object.keys(REQUESTS).filter(each => REQUESTS[each][2].includes(job.state));
    put(by('actions'), ...wanted.map(each => make('button',
        {type: 'button', class: 'btn ' + REQUESTS[each][1], 'data-request': each}, REQUESTS[each][0])));
}

by('actions').addEventListener('click', async event => {
    const request = event.target.dataset.request;
    if (!request || (request === 'cancel' && !confirm('Cancel this job? It writes a checkpoint and ends.'))) {
        return;
    }
    event.target.disabled = true;
    try {
        await post(path + '/' + request);
        show('trouble', '');
        looksAfterTheEnd = 0;
    } catch (error) {
        show('trouble', error.message);
        event.target.disabled = false;
    }
    look();
});

function lines(words) {
    return make('ul', {class: 'runs-plain'}, ...words.map(each => make('li', {}, each)));
}

function contract(made) {
    by('contract-card').hidden = !made;
    if (!made) {
        return;
    }
    if (made.missing) {
        put(by('contract'), made.missing);
        return;
    }
    const changes = made.changes.map(each =>
        make('li', {}, make('strong', {}, each.name), ' ' + each.before + ' → ' + each.after + ' ',
            make('span', {class: 'runs-sub'}, each.origin)));
    const part = (title, content) => [make('h3', {class: 'runs-part'}, title), content];
    put(by('contract'),
        make('p', {class: 'runs-sub'}, 'resume ' + made.parent + ', step ' + made.step + ' → ' + made.end_step),
        ...(made.reads.length ? part('Reads', lines(made.reads)) : []),
        ...part('Continues', lines(made.continues)),
        ...(changes.length ? part('Changes', make('ul', {class: 'runs-plain'}, ...changes)) : []),
        ...(made.resets.length ? part('Resets', lines(made.resets)) : []),
        ...part('Learning rate of the first update', lines([
            (made.rate_before === null ? 'unknown' : rate(made.rate_before)) + ' before, ' + rate(made.rate_after) + ' after'])));
}

function jobLink(job, words) {
    return make('a', {href: address('/runs/' + encodeURIComponent(job))}, words || job);
}

function lineage() {
    const up = record.ancestors.map(each => make('li', {},
        each.step === null ? each.checkpoint : 'step ' + each.step + ' of ', each.step !== null && (each.job ? jobLink(each.job) :
            'another program: '), each.step !== null && make('div', {class: 'runs-sub runs-path'}, each.checkpoint)));
    const down = record.children.map(each => make('li', {}, jobLink(each.id, each.name || each.id), ' ' + each.state));
    const part = (title, content) => [make('h3', {class: 'runs-part'}, title), make('ul', {class: 'runs-plain'}, ...content)];
    put(by('lineage'),
        ...(up.length ? part('From', up) : [make('p', {class: 'runs-sub'}, record.request.from ? 'from ' + record.request.from : 'from scratch')]),
        record.data && make('p', {class: 'runs-sub'}, 'data ' + record.data.name + ', SHA-256 ' + (record.data.digest || '').slice(0, 12) + '…'),
        ...(down.length ? part('Jobs from it', down) : []));
}

function config() {
    const all = record.config.length ? record.config : record.request.overrides;
    const shown = all.filter(each => by('defaults').checked || each.origin !== 'default');
    put(by('config'), table(['Name', 'Value', 'From'], shown.map(each =>
        [each.name, make('strong', {}, each.value), make('span', {class: 'runs-sub'}, each.origin)]), {id: 'config-table'}));
}

function log() {
    const place = by('log'), found = record.log;
    const atEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 4;
    say(by('log-file'), found ? found.file : '');
    say(place, found ? found.lines.join('\n') : 'no log yet');
    if (atEnd) {
        place.scrollTop = place.scrollHeight;
    }
}

async function lookAtRecord() {
    record = await get(path + '/record');
    contract(record.contract);
    lineage();
    config();
    log();
    put(by('checkpoints'), record.checkpoints.length ? table(['#Step', '#Val loss', '#Size', 'File'],
        record.checkpoints.slice().reverse().map(each => [String(each.step), number(each.val_loss, 4),
            short(each.size) + 'B', [each.is_best && make('span', {class: 'badge text-bg-success'}, 'best'),
                each.status !== 'good' && make('span', {class: 'badge text-bg-danger'}, each.status), ' ',
                make('span', {class: 'runs-sub runs-path'}, each.name.split('/').pop())].filter(Boolean)])) :
        make('p', {class: 'runs-empty'}, 'none yet'));
    put(by('attempts'), record.attempts.length ? table(['#', 'Worker', 'Began', '#Steps', 'End'],
        record.attempts.slice().reverse().map(each => [String(each.token), each.worker + ' · ' + each.device, when(each.began_at),
            each.start_step + ' → ' + (each.step === null ? '?' : each.step), each.ended || 'goes on'])) :
        make('p', {class: 'runs-empty'}, 'none yet'));
    by('alerts-card').hidden = !record.alerts.length;
    put(by('alerts'), ...record.alerts.slice().reverse().map(each => make('li', {},
        make('strong', {}, each.name + ' at step ' + each.step), ' ' + each.reason)));
    return looksAfterTheEnd < 3;
}

async function lookAtCurves() {
    const answer = await get(path + '/data', {axis});
    facts(answer.job);
    actions(answer.job);
    draw(answer);
    looksAfterTheEnd = ENDED.includes(answer.job.state) ? looksAfterTheEnd + 1 : 0;
    return looksAfterTheEnd < 3;
}

choice('axes', 'axis', AXES, axis, value => {
    axis = value;
    look();
});
charts.loss.setLog(remembered('scale', '') === 'log');
choice('scales', 'scale', [['', 'Linear'], ['log', 'Log']], remembered('scale', ''), value => charts.loss.setLog(value === 'log'));
by('defaults').addEventListener('change', () => record && config());
const look = every(REFRESH_MS, lookAtCurves);
every(RECORD_MS, lookAtRecord);
