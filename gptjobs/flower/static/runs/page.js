/* What the pages of the Runs tab share: asking the server, making elements, numbers in words.
   Whatever comes from a job becomes text, never markup. */

const prefix = (() => {
    const given = document.getElementById('url_prefix').value.replace(/^\/+|\/+$/g, '');
    return given ? '/' + given : '';
})();

export const READ_ONLY = Boolean(document.getElementById('runs').dataset.readOnly);

export function address(path) {
    return prefix + path;
}

/* A page whose address has a password may fetch no relative address; one with the origin alone it may. */
async function ask(path, options) {
    const answer = await fetch(location.origin + address(path), {credentials: 'same-origin', ...options});
    if (answer.redirected || answer.status === 401) {
        location.reload(); // the login has ended
    }
    if (!answer.ok) {
        const words = new DOMParser().parseFromString(await answer.text(), 'text/html');
        const said = words.querySelector('#main-content') || words.body;
        throw new Error(said.textContent.trim() || answer.statusText);
    }
    return answer.json();
}

export function get(path, parameters) {
    const query = new URLSearchParams(parameters || {}).toString();
    return ask(path + (query ? '?' + query : ''));
}

export function post(path) {
    const token = document.cookie.match('(?:^|;)\\s*_xsrf=([^;]+)');
    return ask(path, {method: 'POST', headers: {'X-XSRFToken': token ? decodeURIComponent(token[1]) : ''}});
}

/* An element with these attributes and children; what is no element is text. */
export function make(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
        if (key.startsWith('on')) {
            made.addEventListener(key.slice(2), value);
        } else if (value === true) {
            made.setAttribute(key, '');
        } else if (value !== undefined && value !== null && value !== false) {
            made.setAttribute(key, value);
        }
    }
    made.append(...children.filter(each => each !== null && each !== undefined && each !== false));
    return made;
}

/* Only what is new is drawn: a page that refreshes itself must not flicker, or lose what is selected. */
export function put(place, ...children) {
    const next = make('div', {}, ...children);
    if (place.innerHTML !== next.innerHTML) {
        place.replaceChildren(...next.childNodes);
    }
}

export function say(place, words) {
    if (place.textContent !== words) {
        place.textContent = words;
    }
}

export function show(id, words) {
    const place = document.getElementById(id);
    say(place, words || '');
    place.hidden = !words;
}

/* Look now, and again so long after each look has ended; not while nobody sees it. */
export function every(milliseconds, look) {
    let timer = null, looking = false, wanted = false;
    async function again() {
        clearTimeout(timer);
        if (looking) {
            wanted = true;
            return;
        }
        looking = true;
        wanted = false;
        try {
            if (!document.hidden) {
                const more = await look();
                document.getElementById('runs').classList.remove('job-stale');
                if (more === false) {
                    return;
                }
            }
        } catch (error) {
            document.getElementById('runs').classList.add('job-stale');
            document.getElementById('runs').title = String(error.message || error);
        } finally {
            looking = false;
        }
        timer = setTimeout(again, wanted ? 0 : milliseconds);
    }
    document.addEventListener('visibilitychange', () => document.hidden || again());
    again();
    return again;
}

export function number(value, digits) {
    return value === null || value === undefined ? '–' : value.toFixed(digits);
}

export function count(value) {
    return value === null || value === undefined ? '–' : Math.round(value).toLocaleString('en-US');
}

export function short(value) {
    if (value === null || value === undefined) {
        return '–';
    }
    const size = Math.abs(value);
    for (const [above, letter] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) {
        if (size >= above) {
            return Number((value / above).toPrecision(3)) + letter;
        }
    }
    return String(Number(value.toPrecision(3)));
}

export function rate(value) {
    if (value === null || value === undefined) {
        return '–';
    }
    return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, 'e') : String(Number(value.toPrecision(3)));
}

export function duration(seconds) {
    if (seconds === null || seconds === undefined) {
        return '–';
    }
    const whole = Math.round(seconds);
    const two = value => String(value).padStart(2, '0');
    if (whole < 60) {
        return whole + 's';
    }
    if (whole < 3600) {
        return Math.floor(whole / 60) + 'm' + two(whole % 60) + 's';
    }
    if (whole < 360000) {
        return Math.floor(whole / 3600) + 'h' + two(Math.floor(whole % 3600 / 60)) + 'm';
    }
    return Math.floor(whole / 86400) + 'd' + two(Math.floor(whole % 86400 / 3600)) + 'h';
}

export function ago(seconds) {
    const past = Date.now() / 1000 - seconds;
    return past < 5 ? 'now' : duration(past).replace(/(\d+[dhm])\d+[hms]$/, '$1') + ' ago';
}

export function when(seconds) {
    return new Date(seconds * 1000).toLocaleString();
}

const BADGES = {
    running: 'task-state-started', finished: 'text-bg-success', diverged: 'text-bg-danger', failed: 'text-bg-danger',
    pausing: 'text-bg-warning', paused: 'text-bg-warning', cancelling: 'text-bg-warning'
};

export function badge(place, state) {
    const look = 'badge ' + (BADGES[state] || 'text-bg-secondary');
    if (place.className !== look) {
        place.className = look;
    }
    say(place, state);
}

export function percent(job) {
    return job.step === null ? 100 * (job.done || 0) : 100 * job.step / job.end_step;
}

export function progress(job) {
    const stage = job.stage || '';
    if (job.step === null) {
        return job.done === null ? stage : stage + ' ' + Math.round(100 * job.done) + '%';
    }
    const steps = job.step + '/' + job.end_step;
    return stage === '' || stage === 'training' ? steps : steps + ' ' + stage;
}

export function bar(place, job) {
    place.firstElementChild.style.width = percent(job) + '%';
    place.firstElementChild.hidden = !percent(job);
    say(place.lastElementChild, progress(job));
}

export function table(headings, rows, attributes) {
    const numbers = headings.map(each => each.startsWith('#'));
    const cell = (name, content, index) => make(name, {class: numbers[index] ? 'job-number' : null},
        ...(Array.isArray(content) ? content : [content]));
    return make('table', {class: 'tasks-table table mb-0', ...attributes},
        make('thead', {}, make('tr', {}, ...headings.map((each, index) => cell('th', each.replace(/^#/, ''), index)))),
        make('tbody', {}, ...rows.map(row => make('tr', {}, ...row.map((each, index) => cell('td', each, index))))));
}

/* Buttons of which one is chosen, as the address of the page says it. */
export function choice(id, name, options, chosen, choose) {
    const place = document.getElementById(id);
    for (const [value, words] of options) {
        place.append(make('button', {
            type: 'button', class: 'btn btn-outline-primary' + (value === chosen ? ' active' : ''),
            'aria-pressed': String(value === chosen), 'data-value': value,
            onclick: () => {
                for (const each of place.children) {
                    each.classList.toggle('active', each.dataset.value === value);
                    each.setAttribute('aria-pressed', String(each.dataset.value === value));
                }
                remember({[name]: value});
                choose(value);
            }
        }, words));
    }
}

export function remembered(name, otherwise) {
    return new URLSearchParams(location.search).get(name) || otherwise;
}

export function remember(values) {
    const parameters = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(values)) {
        if (value) {
            parameters.set(name, value);
        } else {
            parameters.delete(name);
        }
    }
    const query = parameters.toString();
    history.replaceState(null, '', location.pathname + (query ? '?' + query : ''));
}
