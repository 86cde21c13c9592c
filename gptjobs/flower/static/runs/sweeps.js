/* All sweeps. */

import {address, ago, every, get, make, number, put, table} from './page.js';

every(5000, async () => {
    const {sweeps} = await get('/runs/sweeps/data');
    put(document.getElementById('sweeps'), sweeps.length ?
        table(['Sweep', 'State', '#Trials', '#Best', 'Searched', 'Submitted'], sweeps.map(each => [
            make('a', {href: address('/runs/sweeps/' + encodeURIComponent(each.id))}, each.name || each.id), each.state,
            each.ended + ' of ' + each.trials, number(each.best, 4), each.searched.join(', '), ago(each.submitted_at)])) :
        make('p', {class: 'runs-empty'}, 'No sweeps yet: gptjobs submit sweep --help'));
});
